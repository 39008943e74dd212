"""The change proof: what should train did change, all else is bit-identical.

Every tensor is hashed before training. After the first step, at each checkpoint and at
the end the hashes are taken again. A violation stops the run with the tensor's name. Of
what has an fp32 master the master must change, as small steps add up there before they
show in a rounded weight, and the weight must be the master, rounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from modicum.types import RunStopped
from modicum.updates.base import Prepared


@torch.no_grad()
def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of the tensor's shape, dtype and bytes."""
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
    digest.update(flat.numpy().data)
    return digest.hexdigest()


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The fingerprint of every tensor, by name."""
    return {name: fingerprint(tensor) for name, tensor in tensors.items()}


def combined(marks: Mapping[str, str]) -> str:
    """One hash over the fingerprints of many tensors and their names."""
    return hashlib.sha256("".join(f"{n}{marks[n]}" for n in sorted(marks)).encode()).hexdigest()


class ChangeProof:
    """Remembers the start and checks against it."""

    def __init__(self, prepared: Prepared, masters: Mapping[str, Tensor] | None = None) -> None:
        self.prepared = prepared
        self.moved: Mapping[str, Tensor] = prepared.trainable if masters is None else masters
        self.frozen = fingerprints(prepared.frozen)
        self.started = fingerprints(self.moved)
        self.base = combined(self.frozen)
        self.pushed: set[str] = set()  # tensors that have had a gradient

    @property
    def waiting(self) -> bool:
        """Whether some tensor has not had a gradient yet."""
        return len(self.pushed) < len(self.started)

    def push(self, names: Iterable[str]) -> None:
        """Tell which tensors had a gradient other than zero in a step that was taken."""
        self.pushed.update(names)

    def check(self, when: str) -> str:
        """A sentence that says what was proven; RunStopped when it does not hold."""
        for name, tensor in self.prepared.frozen.items():
            if fingerprint(tensor) != self.frozen[name]:
                raise RunStopped(f"change proof ({when}): {name} should be frozen and has changed")
        for name, tensor in self.prepared.trainable.items():
            master = self.moved[name]
            if master is not tensor and not torch.equal(master.to(tensor.dtype), tensor):
                raise RunStopped(f"change proof ({when}): {name} is not its fp32 master, rounded")
        changed = {
            name for name, mark in fingerprints(self.moved).items() if mark != self.started[name]
        }
        still = sorted(self.pushed - changed)
        if still:
            raise RunStopped(
                f"change proof ({when}): {still[0]} trains and has not changed"
                f" ({len(still)} such tensors); the learning rate may be too small"
            )
        return (
            f"{len(changed)} of {len(self.started)} trainable tensors changed,"
            f" {len(self.frozen)} frozen ones are bit-identical"
        )
