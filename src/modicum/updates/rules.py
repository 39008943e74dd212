"""Rules: how the optimizer moves what trains, and what it keeps for that.

A rule makes a torch optimizer for groups of tensors and knows the bytes of its state. All
state is in tensors, so that a checkpoint can hold it. AdamW is the rule of every update
that does not say otherwise.

A rule also says how far a step goes in a tensor, beside the spacing of its numbers. A number w of fp32 that is to move by less than half the distance to its neighbour stays as it
is. So a tensor must have changed only when some entry of it was to move by more than that.
Where weight decay acts, its own rounding may undo as much, and a whole spacing is asked for.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from modicum.config import Optimizer

Groups = list[dict[str, Any]]
PIECE = 2**18  # numbers looked at at a time
HALF = 0.51  # a spacing's half, and room for the rounding of the step itself
FAR = 16.0  # spacings beyond which a tensor does not come back to its start by a few steps


@dataclass(frozen=True)
class Move:
    """The entry that a step took farthest for its spacing."""

    rate: float
    """The learning rate, with the tensor's multiplier."""
    step: float = 0.0
    spacing: float = 0.0
    spacings: float = 0.0
    """The step in spacings, less what weight decay may undo."""

    @property
    def shows(self) -> bool:
        """Whether the entry is certain to have moved."""
        return self.spacings > HALF

    @property
    def far(self) -> bool:
        """Whether it went so far that the tensor must differ from its start from now on."""
        return self.spacings >= FAR

    def __str__(self) -> str:
        return (
            f"a step of {self.step:.2g} at a learning rate of {self.rate:.2g} shows beside a"
            f" spacing of {self.spacing:.2g}"
        )


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's numbers in order, so many at a time."""
    yield from tensor.detach().reshape(-1).split(PIECE)


def farthest(tensor: Tensor, sizes: Iterable[Tensor], rate: float, decay: float) -> Move:
    """Of fp32 numbers that moved by `rate` times `sizes` (flat, in `pieces`) or not at all.

    It stops at the first piece that goes far.
    """
    best = Move(rate)
    for values, size in zip(pieces(tensor), sizes, strict=False):
        height = values.abs()
        spacing = torch.nextafter(height, height.new_tensor(float("inf"))) - height
        step = rate * (size - decay * height)
        number = torch.where(step > 0, step / spacing, 0.0)
        at = int(number.argmax())
        found = float(number[at]) / (2 if decay else 1)
        if found > best.spacings:
            best = Move(rate, float(step[at]), float(spacing[at]), found)
        if best.far:
            break
    return best


class Rule(Protocol):
    """How tensors are moved by their gradients."""

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """The optimizer; every group has `params`, `lr` and `names`."""
        ...

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        """Bytes that the optimizer keeps of one fp32 tensor, the step counter left out."""
        ...

    @property
    def stateful(self) -> bool:
        """Whether the optimizer has a state of every tensor that it has moved."""
        return True

    def sizes(
        self, name: str, gradient: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        """How far the step just taken moved each number, over the learning rate; in `pieces`.

        By the gradient, the state after the step and the group's settings; weight decay left
        out. The change proof compares this with the spacing of the numbers. A rule that does
        not say is taken to move whatever has a gradient.
        """
        for piece in pieces(gradient):
            yield torch.where(piece == 0, 0.0, float("inf"))

    def move(
        self, name: str, tensor: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> Move | None:
        """How far the step just taken went in a tensor; None: the optimizer passed it over."""
        if tensor.grad is None:
            return Move(group["lr"])
        if self.stateful and not state:
            return None
        sizes = self.sizes(name, tensor.grad, state, group)
        return farthest(tensor, sizes, group["lr"], group["weight_decay"])

    def step_numbers(self, largest: int) -> int:
        """fp32 numbers that a step makes and drops; the largest tensor has `largest`."""
        return 0


class AdamWRule(Rule):
    """Adam with decoupled weight decay (arXiv 1711.05101): two moments of every number."""

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """torch's AdamW, one fused pass."""
        return torch.optim.AdamW(
            groups,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        """Two fp32 numbers for each."""
        return 8 * shape.numel()

    def sizes(
        self, name: str, gradient: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        """|m| / (sqrt(v) + eps), both with bias correction."""
        (beta1, beta2), count = group["betas"], float(state["step"])
        moments = zip(pieces(state["exp_avg"]), pieces(state["exp_avg_sq"]), strict=True)
        for first, second in moments:
            root = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
            yield (first.abs() / (1 - beta1**count)).div_(root)


@dataclass(frozen=True)
class SgdRule(Rule):
    """Gradient descent: w -= rate * b, where b = momentum * b + gradient.

    Weight decay is torch's: added to the gradient, so that momentum keeps it too. Without
    momentum this is the decoupled one.
    """

    momentum: float = 0.0

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """torch's SGD; the betas and epsilon of the settings have no use here."""
        return torch.optim.SGD(groups, momentum=self.momentum, weight_decay=settings.weight_decay)

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        """One fp32 number for each under momentum, else nothing."""
        return 4 * shape.numel() if self.momentum else 0

    @property
    def stateful(self) -> bool:
        """Under momentum."""
        return self.momentum > 0

    def sizes(
        self, name: str, gradient: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        """The sum of gradients, or the gradient."""
        yield from (piece.abs() for piece in pieces(state.get("momentum_buffer", gradient)))
