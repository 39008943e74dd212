"""What a base is: hashes of its weights, of how its tokenizer makes and ends texts, of its config.

Taken when the weights are read, over all parameters and persistent buffers as they are in memory, and
compared wherever a base is loaded for a run.

Marks of tensors, by which a proof sees that they changed, are made where the tensors are: on a CPU the
SHA-256 of their bytes. Elsewhere these would all have to come down: there the bits b of each row of 4,096
numbers are summed with odd weights w, and SHA-256 has the sums alone:

    s = sum over the row of b_i w_i    (mod 2^64)

One other bit changes s by an odd number times a power of two below 2^64. Two numbers of a row that change
places show, as no two weights differ by a multiple of 2^33 (tests/test_marks.py). Marks compare tensors
of one run."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from modicum.models.configs import KNOWN
from modicum.models.four_bit import numbers
from modicum.types import Frozen, UserError

CHUNK = 2**26  # bytes that are on the CPU at a time, of a tensor elsewhere
MAX_THREADS = 4
ROW, PIECE = 4096, 2**24  # numbers of a row, and of what is looked at at a time
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
HASHES: dict[str, str] = KNOWN["hashes"]  # of a base, and what a message calls it
# Of a config: who wrote it, and in which dtype.
UNSAID = ("architectures", "dtype", "torch_dtype", "transformers_version")


@torch.no_grad()
def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of the tensor's shape, dtype and bytes; of one in 4 bits, of the numbers that it has."""
    tensor = numbers(tensor)
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for part in flat.split(CHUNK):
        digest.update(part.cpu().numpy().data)
    return digest.hexdigest()


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The fingerprint of every tensor, by name."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(tensors, pool.map(fingerprint, tensors.values()), strict=True))


def combined(marks: Mapping[str, str]) -> str:
    """One hash over the fingerprints of many tensors and their names."""
    return hashlib.sha256("".join(f"{n}{marks[n]}" for n in sorted(marks)).encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """One hash of all parameters and persistent buffers; what is tied counts once."""
    held = reversed(model.state_dict(keep_vars=True).items())  # of names that are tied the first
    named = {id(value): (name, value) for name, value in held if isinstance(value, Tensor)}
    return combined(fingerprints(dict(named.values())))


def texts_hash(tokenizer: Any, end_tokens: tuple[int, ...]) -> str:
    """One hash of how texts become tokens, of the chat template, and of what ends a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    as_text = getattr(backend, "to_str", None)
    rules = as_text() if as_text else sorted(tokenizer.get_vocab().items())
    facts = [getattr(tokenizer, name, None) for name in ("chat_template", "bos_token_id")]
    whole = json.dumps([rules, *facts, end_tokens], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()


def config_hash(said: Mapping[str, Any]) -> str:
    """One hash of a model's config as its file has it: no other version of the library changes it."""
    plain = {k: v for k, v in said.items() if k not in UNSAID and not k.startswith("_")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


class Identity(Frozen):
    """Which base was loaded (by the names of `HASHES`), and how long it took to find that out."""

    hashes: Mapping[str, str]
    seconds: float = field(default=0.0, compare=False)

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, end_tokens: tuple[int, ...], config: Mapping[str, Any]
    ) -> Self:
        """The identity of a model that nothing has touched; `config` is what its file says."""
        began = time.perf_counter()
        texts = texts_hash(tokenizer, end_tokens)
        found = weights_hash(model), texts, config_hash(config)
        return cls(dict(zip(HASHES, found, strict=False)), time.perf_counter() - began)

    @property
    def bare(self) -> Self:
        """That of the base alone, whatever training began with."""
        return replace(self, hashes={k: v for k, v in self.hashes.items() if k != "init_hash"})

    def require(self, known: Mapping[str, Any], past: str, name: str) -> None:
        """UserError, which begins with `past` (`the run in x was trained on`), unless this is the
        base whose `hashes` are `known`; `name` is its place now."""
        for key, what in HASHES.items():
            if known.get(key) != self.hashes.get(key):
                was, now = (f"{of.get(key)!s:.12}" for of in (known, self.hashes))
                raise UserError.of("other_hash", past=past, what=what, was=was, name=name, now=now)


def odd_weights() -> Tensor:
    """ROW odd numbers of 64 bits."""
    drawn = np.random.Generator(np.random.Philox(0)).integers(-(2**62), 2**62, ROW)
    return torch.from_numpy(2 * drawn + 1)


def sums(tensor: Tensor, weights_R: Tensor) -> Tensor:
    """The sums of the rows of a tensor, of which the last may be shorter."""
    flat, found = numbers(tensor).detach().reshape(-1), []
    bits = flat.view(BITS[flat.element_size()])
    for part in bits.split(PIECE):
        whole = len(part) // ROW * ROW
        found.append((part[:whole].view(-1, ROW) * weights_R).sum(1))
        if len(rest := part[whole:]):
            found.append((rest * weights_R[: len(rest)]).sum(0, keepdim=True))
    return torch.cat(found)


@torch.no_grad()
def marks(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, str]:
    """The mark of every tensor, or of it in a dtype, by name; sums come down by one copy a device."""
    here = {name: tensor for name, tensor in tensors.items() if tensor.device.type == "cpu"}
    wide = {name: fingerprint(tensor.to(dtype)) for name, tensor in here.items() if dtype}
    found = wide or fingerprints(here)
    for device in {tensor.device for tensor in tensors.values()} - {torch.device("cpu")}:
        there = {name: tensor for name, tensor in tensors.items() if tensor.device == device}
        weights_R = odd_weights().to(device)
        each = [sums(t if dtype is None else t.to(dtype), weights_R) for t in there.values()]
        told = torch.cat(each).cpu().split([len(of) for of in each])
        for (name, tensor), of in zip(there.items(), told, strict=True):
            digest = hashlib.sha256(f"{tuple(tensor.shape)} {dtype or tensor.dtype}".encode())
            digest.update(of.numpy().tobytes())
            found[name] = digest.hexdigest()
    return found


def mark(tensor: Tensor) -> str:
    """The mark of one tensor."""
    return marks({"": tensor})[""]
