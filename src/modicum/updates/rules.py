"""Rules: how the optimizer moves what trains, and what it keeps for that.

A rule makes a torch optimizer for groups of tensors and knows the bytes of its state. All
state is in tensors, so that a checkpoint can hold it. AdamW is the rule of every update
that does not say otherwise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from modicum.config import Optimizer
from modicum.updates.moves import Move, farthest, pieces

Groups = list[dict[str, Any]]


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
