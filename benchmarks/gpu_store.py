"""Part `store`: fingerprints of all weights, saving and loading them, in bytes a second."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from gpu import Asked, Put
from gpu_base import attempt, device_of, dtype_of, random_model, seconds, shape, wait
from torch import Tensor

ROW = 4096  # numbers that become one sum
UNSIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def by_sha(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """As modicum does now: every byte goes to the host and through SHA-256."""
    from modicum.models.identity import fingerprints

    return fingerprints(tensors)


def by_sums(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of sums that the device makes: bits times odd random numbers, over rows, modulo 2^64.

    One changed number always shows, as an odd factor has an inverse; two by a chance of about 2^-63.
    """
    device = next(iter(tensors.values())).device
    draw = torch.Generator().manual_seed(0)
    odd = (torch.randint(-(2**62), 2**62, (ROW,), generator=draw) * 2 + 1).to(device)
    found = {}
    for name, tensor in tensors.items():
        bits = tensor.detach().contiguous().reshape(-1).view(UNSIGNED[tensor.element_size()])
        whole = len(bits) // ROW * ROW
        sums = [(part.long() * odd).sum(-1) for part in bits[:whole].view(-1, ROW).split(2**14)]
        sums.append((bits[whole:].long() * odd[: len(bits) - whole]).sum()[None])
        made = torch.cat(sums).cpu().numpy().tobytes()
        about = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
        found[name] = hashlib.sha256(about + made).hexdigest()
    return found


FINGERPRINTS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, str]]] = {
    "sha256": by_sha,
    "sums": by_sums,
}


def finds(way: Callable[[Mapping[str, Tensor]], dict[str, str]], device: torch.device) -> bool:
    """Whether a flipped last bit, and two numbers that change places, show."""
    table = torch.arange(1.0, 10_001.0, device=device).bfloat16()
    flipped, swapped = table.clone(), table.clone()
    flipped.view(torch.int16)[5000] ^= 1
    swapped[[3, 9000]] = swapped[[9000, 3]]
    marks = [way({"": of})[""] for of in (table, table.clone(), flipped, swapped)]
    return marks[0] == marks[1] and len(set(marks)) == 3


def store(asked: Asked, put: Put) -> None:
    """A model of 1.5B shapes, in its dtype."""
    from safetensors.torch import load_file, save_file

    device = device_of(asked)
    model = random_model(shape(asked), device, dtype_of(asked))
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    size, told = sum(p.nbytes for p in tensors.values()), []
    put("bytes", size)

    def rate(name: str, call: Callable[[], Any], warm: int = 1, **more: Any) -> None:
        taken = attempt(seconds, call, device, 1, warm)
        if isinstance(taken, float):
            put(name, {"seconds": taken, "bytes_per_second": size / taken, **more})
            told.append(f"{name} {size / taken / 1e9:.2f}")
        else:
            put(name, taken)

    for name, way in FINGERPRINTS.items():
        rate(name, lambda w=way: w(tensors), finds=attempt(finds, way, device))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.safetensors"
        rate("save", lambda: save_file(tensors, path), warm=0)
        rate("load", lambda: load_file(path, device=str(device)))
        wait(device)
    put("line", "GB/s: " + ", ".join(told))
