"""Rules: how the optimizer moves what trains, and what it keeps for that.

A rule makes a torch optimizer for groups of tensors and knows the bytes of its state. All
state is in tensors, so that a checkpoint can hold it. AdamW is the rule of every update
that does not say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from modicum.config import Optimizer

Groups = list[dict[str, Any]]


class Rule(Protocol):
    """How tensors are moved by their gradients."""

    proportional: ClassVar[bool] = False
    """Whether a step is in proportion to the gradient, and so may be too small to be stored."""

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """The optimizer; every group has `params`, `lr` and `names`."""
        ...

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        """Bytes that the optimizer keeps of one fp32 tensor, the step counter left out."""
        ...

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


@dataclass(frozen=True)
class SgdRule(Rule):
    """Gradient descent: w -= rate * b, where b = momentum * b + gradient.

    Weight decay is torch's: added to the gradient, so that momentum keeps it too. Without
    momentum this is the decoupled one.
    """

    proportional: ClassVar[bool] = True
    momentum: float = 0.0

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """torch's SGD; the betas and epsilon of the settings have no use here."""
        return torch.optim.SGD(groups, momentum=self.momentum, weight_decay=settings.weight_decay)

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        """One fp32 number for each under momentum, else nothing."""
        return 4 * shape.numel() if self.momentum else 0
