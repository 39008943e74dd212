"""Marks of tensors, by which a proof sees that they changed, made where the tensors are.

On a CPU it is the SHA-256 of their bytes. Elsewhere these would all have to come down: there the bits b of
each row of 4,096 numbers are summed with odd weights w, and SHA-256 has the sums alone:

    s = sum over the row of b_i w_i    (mod 2^64)

One other bit changes s by an odd number times a power of two below 2^64. Two numbers of a row that change
places show, as no two weights differ by a multiple of 2^33 (tests/test_marks.py). Marks compare tensors
of one run; what a base is, is known by SHA-256.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from modicum.models.four_bit import numbers
from modicum.models.identity import fingerprint, fingerprints

ROW, PIECE = 4096, 2**24  # numbers of a row, and of what is looked at at a time
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights() -> Tensor:
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
        weights_R = weights().to(device)
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
