"""What a base is: a hash of its weights, one of how its tokenizer makes and ends texts, one of
its config.

A run names its base by a place, and another model may come to lie there. So the hashes are taken
when the weights are read, before an update touches them and before they go to a device, over
all parameters and persistent buffers, whatever trains; they stand in all that a run writes and
are compared wherever a base is loaded for a run. The numbers are those in memory: a base read
in bf16 is another one than in fp32.

SHA-256 of every tensor's shape, dtype and bytes; then of all names and these. Tensors are hashed
in a few threads (hashlib lets the others run), and none is copied whole to another device.

The folder of a PEFT adapter may stand in the place of a model: its base, with the adapter on top.
The base is the one that `adapter_config.json` names, or the setting `base`. PEFT puts the
adapter in, whatever kind it is, as long as it lies inside the layers; what it would only warn
of (a tensor that is not in the file, or that no layer takes) is an error here. Dropout is
left out: a policy has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from modicum.runs import read_object
from modicum.types import UserError

CHUNK = 2**26  # bytes that are on the CPU at a time, of a tensor elsewhere
MAX_THREADS = 4
HASHES = {
    "base_hash": "base model",
    "tokenizer_hash": "tokenizer or chat template",
    "config_hash": "config.json, though with the same weights",
    "adapter_hash": "adapter on its base",
}
"""What is hashed of a base, and what a message calls it."""
# Of a config: who wrote it, and in which dtype.
UNSAID = ("architectures", "dtype", "torch_dtype", "transformers_version")


@torch.no_grad()
def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of the tensor's shape, dtype and bytes."""
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for part in flat.split(CHUNK):
        digest.update(part.cpu().numpy().data)
    return digest.hexdigest()


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The fingerprint of every tensor, by name."""
    if sum(tensor.nbytes for tensor in tensors.values()) < 2**22:  # threads would cost more
        return {name: fingerprint(tensor) for name, tensor in tensors.items()}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(tensors, pool.map(fingerprint, tensors.values()), strict=True))


def combined(marks: Mapping[str, str]) -> str:
    """One hash over the fingerprints of many tensors and their names."""
    return hashlib.sha256("".join(f"{n}{marks[n]}" for n in sorted(marks)).encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """One hash of all parameters and persistent buffers; what is tied counts once."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            named.setdefault(id(tensor), (name, tensor))
    return combined(fingerprints(dict(named.values())))


def texts_hash(tokenizer: Any, end_tokens: tuple[int, ...]) -> str:
    """One hash of how texts become tokens, of the chat template, and of what ends a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = (
        backend.to_str() if hasattr(backend, "to_str") else sorted(tokenizer.get_vocab().items())
    )
    template = getattr(tokenizer, "chat_template", None)
    begin = getattr(tokenizer, "bos_token_id", None)
    whole = json.dumps([rules, template, begin, end_tokens], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()


def config_hash(said: Mapping[str, Any]) -> str:
    """One hash of a model's config as its file has it: no other version of the library changes it."""
    plain = {k: v for k, v in said.items() if k not in UNSAID and not k.startswith("_")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Which base was loaded, and how long it took to find that out."""

    hashes: Mapping[str, str]
    """By the names of `HASHES`."""
    seconds: float = field(default=0.0, compare=False)

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, end_tokens: tuple[int, ...], config: Mapping[str, Any]
    ) -> Identity:
        """The identity of a model that nothing has touched; `config` is what its file says."""
        began = time.perf_counter()
        texts = texts_hash(tokenizer, end_tokens)
        found = (weights_hash(model), texts, config_hash(config))
        return cls(dict(zip(HASHES, found, strict=False)), time.perf_counter() - began)

    def under(self, adapter: str) -> Identity:
        """This base with an adapter on top, by its hash."""
        return replace(self, hashes={**self.hashes, "adapter_hash": adapter})

    def require(self, known: Mapping[str, Any], past: str, name: str) -> None:
        """UserError unless this is the base whose `hashes` are `known`; `name` is its place now.

        `past` begins the line: `the run in x was trained on`.
        """
        for key, what in HASHES.items():
            if known.get(key) != self.hashes.get(key):
                raise UserError(
                    f"{past} another {what}: its hash differs (it was {known.get(key)!s:.12}, that"
                    f" of {name} is {self.hashes.get(key)!s:.12})"
                )


CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# What stands before the prompt, or beside the model, and not inside its layers.
OUTSIDE = """PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING CPT ADAPTION_PROMPT XLORA
    POLY SHADOW"""
# What a library raises where a file is not what it should be.
FAULTS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(ImportError, SafetensorError),
)


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT does not warn of what is no matter here."""
    with warnings.catch_warnings():
        # It asks transformers for a name that is to go, and does not know the sizes of norms.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set", UserWarning)  # it sets it right
        warnings.filterwarnings("ignore", "Model has `tie_word", UserWarning)  # `merged` unties
        yield


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def said(folder: Path) -> Mapping[str, Any]:
    """What the config of an adapter says; UserError where it is none that a policy can have."""
    found = read_object(folder / CONFIG)
    kind, task = found.get("peft_type"), found.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{folder} is an adapter for the task {task}, not for a causal model")
    if kind in OUTSIDE.split() or found.get("alora_invocation_tokens"):
        raise UserError(
            f"{folder} is an adapter of the kind {kind}, which is not inside the layers of its base"
            " alone; it cannot be evaluated or trained here"
        )
    return found


def base_of(folder: Path, base: str) -> str:
    """What the base of the adapter in a folder is called: `base`, or what its config names."""
    named = base or said(folder).get("base_model_name_or_path")
    if not (named and isinstance(named, str)):
        raise UserError(f"{folder} is an adapter and does not name its base; --base MODEL does")
    return named


def put(model: nn.Module, folder: Path, pickled: bool = False, weights: bool = True) -> Any:
    """`model` with the adapter in a folder on top; without `weights` its layers alone.

    UserError where it does not fit the model or its files are broken.
    """
    import peft

    facts, place = said(folder), getattr(model, "name_or_path", "")
    try:
        config: Any = peft.PeftConfig.from_peft_type(**{**facts, "inference_mode": False})
        config.task_type, config.base_model_name_or_path = peft.TaskType.CAUSAL_LM, place
        if hasattr(config, "lora_dropout"):
            config.lora_dropout = 0.0
        with torch.random.fork_rng(devices=[]), quiet():
            made: Any = peft.get_peft_model(model, config)  # type: ignore[arg-type]
            for name, parameter in made.named_parameters():
                if ".lora_" in name:
                    parameter.data = parameter.data.float()  # also the lengths of DoRA
            if weights:
                _fill(made, folder, pickled)
    except FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder} does not fit {place}, or is broken: {reason:.300}") from None
    return made.eval()


def _fill(model: Any, folder: Path, pickled: bool) -> None:
    """Set the adapter's tensors to those of the file; all must be there, and no other."""
    from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    there = (folder / PICKLED).is_file()
    if not (folder / WEIGHTS).is_file() and not (there and pickled):
        hint = f"; --pickled-weights reads {PICKLED}" if there else ""
        raise UserError(f"{folder} has no {WEIGHTS}{hint}")
    for tensor in get_peft_model_state_dict(model, save_embedding_layers=False).values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))  # the file must fill them all
    found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    if found.unexpected_keys:
        raise UserError(
            f"{folder}: its base has no place for its tensor {min(found.unexpected_keys)}; is it"
            " for another base?"
        )
    for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder} has no {name}, or numbers in it that are not finite")


def adapter_hash(model: Any, folder: Path) -> str:
    """One hash of the adapter's tensors and of what its config says, its base's place left out."""
    from peft.utils import get_peft_model_state_dict

    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    plain = {name: v for name, v in said(folder).items() if name != "base_model_name_or_path"}
    return combined({**fingerprints(held), "": config_hash(plain)})


def merged(model: Any) -> nn.Module:
    """An ordinary model in fp32, an adapter on it added; `model` is spent afterwards."""
    if not hasattr(model, "get_base_model"):
        return model
    base = model.get_base_model()
    ends = head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    # An adapter on the head or on the embedding: the head gets a weight of its own.
    if any(hasattr(end, "base_layer") for end in ends) and head.weight is embedding.weight:
        getattr(head, "base_layer", head).weight = nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
    try:
        return model.float().merge_and_unload()
    except (NotImplementedError, AttributeError, ValueError) as error:
        kind = model.peft_config["default"].peft_type.value
        reason = str(error).splitlines()[0]
        raise UserError(f"PEFT adds no {kind} to the weights of its base: {reason}") from None
