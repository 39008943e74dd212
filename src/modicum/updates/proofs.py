"""The change proof: what should train did change, all else is bit-identical.

Every tensor is hashed before training. After the first step, at each checkpoint and at
the end the hashes are taken again. A violation stops the run with the tensor's name.
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

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.frozen = fingerprints(prepared.frozen)
        self.started = fingerprints(prepared.trainable)
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
        changed = {
            name
            for name, tensor in self.prepared.trainable.items()
            if fingerprint(tensor) != self.started[name]
        }
        still = sorted(self.pushed - changed)
        if still:
            raise RunStopped(
                f"change proof ({when}): {still[0]} trains and has not changed"
                f" ({len(still)} such tensors); the learning rate may be too small for its dtype"
            )
        return (
            f"{len(changed)} of {len(self.started)} trainable tensors changed,"
            f" {len(self.frozen)} frozen ones are bit-identical"
        )
