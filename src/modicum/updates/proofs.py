"""The change proof: what should train did change, all else is bit-identical.

Every tensor is hashed before training. After the first step, at each checkpoint and at
the end the hashes are taken again. A violation stops the run with the tensor's name. Of
what has an fp32 master the master must change, as small steps add up there before they
show in a rounded weight, and the weight must be the master, rounded. Of a tensor of which
some entries train, all others must be as they were. Buffers (the frozen projections of
some adapters) must stay as they are too; rotary frequencies may follow the length of a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from modicum.models.precision import Masters, Sparse
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


class Resting:
    """What may train but rests (under a schedule): hashed when it stops.

    It must have the same hash when it starts again and at every check.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.resting: dict[str, str] = {}

    def rest(self) -> None:
        """What trains has changed: hash what stopped, check and forget what started."""
        active = self.prepared.active
        self.check_resting("when it started to train again", self.resting.keys() & active.keys())
        for name in self.resting.keys() & active.keys():
            del self.resting[name]
        for name, parameter in self.prepared.trainable.items():
            if name not in active and name not in self.resting:
                self.resting[name] = fingerprint(parameter)

    def check_resting(self, when: str, names: Iterable[str] | None = None) -> None:
        """RunStopped when one of what rests, or of `names`, has changed."""
        for name in sorted(self.resting if names is None else names):
            if fingerprint(self.prepared.trainable[name]) != self.resting[name]:
                raise RunStopped(f"change proof ({when}): {name} rested and has changed")


class ChangeProof(Resting):
    """Remembers the start and checks against it."""

    def __init__(self, prepared: Prepared, masters: Masters) -> None:
        super().__init__(prepared)
        self.masters = masters
        self.frozen = fingerprints(prepared.frozen)
        self.buffers = fingerprints(_buffers(prepared))
        self.started = {n: _wide(p) for n, p in prepared.trainable.items()}
        self.outside: dict[str, tuple[Sparse, str]] = {}
        self.base = combined(self.frozen)
        self.pushed: set[str] = set()  # tensors that have had a gradient
        self.moved: set[str] = set()  # tensors that were seen to have changed
        self.rest()

    @property
    def waiting(self) -> bool:
        """Whether some tensor has not had a gradient yet."""
        return len(self.pushed) < len(self.started)

    def push(self, names: Iterable[str]) -> None:
        """Tell which tensors had a gradient other than zero in a step that was taken."""
        self.pushed.update(names)

    def resume(self, pushed: Iterable[str], moved: Iterable[str]) -> None:
        """Go on from a checkpoint, whose values are in the model by now, with the same start."""
        self.pushed, self.moved = set(pushed), set(moved)
        self.resting, self.outside = {}, {}
        self.rest()

    def look(self) -> None:
        """See which masters have left their start; call before what trains changes."""
        for name in self.prepared.active:
            master = self.masters.held[name]
            left = (
                bool(master.tensor.any())
                if isinstance(master, Sparse)
                else _wide(master.tensor) != self.started[name]
            )
            if left:
                self.moved.add(name)
            elif name not in self.prepared.schedule.may_return and name not in self.outside:
                self.moved.discard(name)

    def rest(self) -> None:
        """What trains has changed; also hash what does not train of a tensor of which some does."""
        super().rest()
        for name, master in self.masters.held.items():
            if isinstance(master, Sparse) and self.outside.get(name, (None, ""))[0] is not master:
                self.outside[name] = (master, fingerprint(master.at_start()))

    def check(self, when: str) -> str:
        """A sentence that says what was proven; RunStopped when it does not hold."""
        for name, tensor in self.prepared.frozen.items():
            if fingerprint(tensor) != self.frozen[name]:
                raise RunStopped(f"change proof ({when}): {name} should be frozen and has changed")
        for name, tensor in _buffers(self.prepared).items():
            if fingerprint(tensor) != self.buffers.get(name):
                raise RunStopped(f"change proof ({when}): the buffer {name} has changed")
        self.check_resting(when)
        for name, master in self.masters.held.items():
            if name in self.resting:
                continue
            if not torch.equal(master.published(), master.parameter):
                raise RunStopped(f"change proof ({when}): {name} is not its fp32 master, rounded")
            if (
                isinstance(master, Sparse)
                and fingerprint(master.at_start()) != self.outside[name][1]
            ):
                raise RunStopped(
                    f"change proof ({when}): {name} has changed where it should not train"
                )
        self.look()
        # What may come back to its start cannot be told from what never left it.
        still = sorted(self.pushed - self.moved - self.prepared.schedule.may_return)
        if still:
            raise RunStopped(
                f"change proof ({when}): {still[0]} trains and has not changed"
                f" ({len(still)} such tensors); the learning rate may be too small"
            )
        kept = f", {len(self.resting)} of them rest now" if self.resting else ""
        return (
            f"{len(self.moved)} of {len(self.started)} trainable tensors changed{kept},"
            f" {len(self.frozen)} frozen ones are bit-identical"
        )


def _wide(tensor: Tensor) -> str:
    """The fingerprint in fp32, so that a weight and its master compare."""
    return fingerprint(tensor.detach().float())


def _buffers(prepared: Prepared) -> dict[str, Tensor]:
    """All tensors of the model that are no parameters, but for rotary frequencies."""
    return {n: b for n, b in prepared.model.named_buffers() if not n.endswith("inv_freq")}
