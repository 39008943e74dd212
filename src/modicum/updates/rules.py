"""Rules: how the optimizer moves what trains, and what it keeps for that.

A rule makes a torch optimizer for groups of tensors and knows the bytes of its state. All
state is in tensors, so that a checkpoint can hold it. AdamW is the rule of every update
that does not say otherwise.

A rule also says how far a step goes in a tensor, beside the spacing of its numbers. A number w of fp32 that is to move by less than half the distance to its neighbour stays as it
is. So a tensor must have changed only when some entry of it was to move by more than that.
Where weight decay acts, its own rounding may undo as much, and a whole spacing is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modicum.config import Optimizer

Groups = list[dict[str, Any]]
PIECE = 2**18  # numbers looked at at a time
SHOWS = 0.51  # of a spacing: its half, and room for the rounding of the step itself
FAR = 16.0  # spacings beyond which a tensor does not come back to its start by a few steps


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's numbers in order, so many at a time."""
    yield from tensor.detach().reshape(-1).split(PIECE)


def farthest(tensor: Tensor, sizes: Iterable[Tensor], rate: float, decay: float) -> float:
    """How many spacings fp32 numbers went at most, by `rate` times `sizes` (flat, in `pieces`).

    What weight decay may undo is taken off. It stops at the first piece that goes FAR.
    """
    best = 0.0
    for values, size in zip(pieces(tensor), sizes, strict=False):
        height = values.abs()
        spacing = torch.nextafter(height, height.new_tensor(float("inf"))) - height
        step = rate * (size - decay * height)
        best = max(best, float((step / spacing).max()) / (2 if decay else 1))
        if best >= FAR:
            break
    return best


class Rule(ABC):
    """How tensors are moved by their gradients."""

    by_entry = True
    """Whether the step of a number depends on its own gradient and state alone."""

    @abstractmethod
    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """The optimizer; every group has `params`, `lr` and `names`."""

    @abstractmethod
    def state_bytes(self, name: str, shape: torch.Size) -> int:
        """Bytes that the optimizer keeps of one fp32 tensor, the step counter left out."""

    def sizes(
        self, name: str, gradient: Tensor, state: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> Iterator[Tensor]:
        """How far the coming step moves each number, over the learning rate; in `pieces`.

        An optimizer takes that step from zero, by the gradient, a copy of the state and the
        group's settings, without weight decay. The change proof compares it with the spacing of
        the numbers.
        """
        for number, piece in enumerate(pieces(gradient) if self.by_entry else [gradient.detach()]):
            tensor, part = torch.zeros_like(piece).requires_grad_(), slice(number * PIECE, None)
            alone = {"params": [tensor], "names": [name], "lr": 1.0, "weight_decay": 0.0}
            optimizer = self.make([dict(alone)], Optimizer())
            optimizer.param_groups[0].update({**group, **alone})
            for key, value in state.items():
                like = self.by_entry and value.shape == gradient.shape
                value = value.reshape(-1)[part][: piece.numel()] if like else value
                optimizer.state[tensor][key] = value.clone()
            tensor.grad = piece
            optimizer.step()
            yield from pieces(tensor.abs())

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
        return 8 * shape.numel()


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
        return 4 * shape.numel() if self.momentum else 0
