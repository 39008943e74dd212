"""Optimizers as updates: `sgd`, `sgd @ last(2)`, `galore(rank=4) @ (lora(rank=8) @ last(1))`.

What trains, when, and from which start stays the update's; only the rule that turns gradients
into steps is another. As `@` binds from the left, `(sgd @ lora) @ last(2)` is read as
`sgd @ (lora @ last(2))`. `matrices` has those that treat the matrices of the layers in a way of
their own."""

from copy import copy
from typing import Self

import torch
from torch import nn

from modicum.config import Optimizer
from modicum.limits import ShareBelowOne
from modicum.types import UserError
from modicum.updates.base import Method, Placed, Prepared, Selection
from modicum.updates.dense import Full
from modicum.updates.members import AdamWRule, Groups, Member, Pair, Rule


class OptimizerMember(Member, Rule):
    """An optimizer that can be told for what, `sgd @ lora(rank=4)`, and the rule that it is."""

    kind = "optimizers"
    seed = 0

    def rule(self, seed: int) -> Self:
        """The rule of a run: what is random in it is drawn from `seed`."""
        made = copy(self)
        vars(made)["seed"] = seed
        return made

    def check(self, prepared: Prepared) -> None:
        """UserError when it has nothing to do for what trains; `told` gets what the user should know."""

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        return Optimized(self, Full()).apply(model, seed)

    def __matmul__(self, update: object) -> "Optimized":
        _no_second(self, update)
        trains = isinstance(update, Selection | Method | Placed)
        return Optimized(self, update) if trains else NotImplemented


class Optimized(Pair):
    """An optimizer and the update whose tensors it moves."""

    sign = "@"

    @property
    def faster(self) -> float:
        return float(self.left.faster)

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        prepared = self.right.apply(model, seed)
        if type(prepared.rule) is not AdamWRule:
            raise UserError(f"{self}: {self.right} has an optimizer of its own; leave one out")
        prepared.rule = self.left.rule(seed)
        self.left.check(prepared)
        return prepared

    def __matmul__(self, where: object) -> "Optimized":
        _no_second(self, where)
        if isinstance(self.right, Method) and isinstance(where, Selection):
            return Optimized(self.left, self.right @ where)
        return NotImplemented


def _no_second(left: object, right: object) -> None:
    if isinstance(right, OptimizerMember | Optimized):
        raise UserError(f"{left} @ {right}: two optimizers cannot move one model; leave one out")


class Sgd(OptimizerMember):
    """Plain gradient descent: no optimizer state without momentum, and far larger rates.

    w -= rate * b, where b = momentum * b + gradient; weight decay is torch's, in the gradient."""

    momentum: ShareBelowOne = 0.0

    @property
    def faster(self) -> float:  # type: ignore[override]
        """Under momentum steps add up to 1/(1 - momentum) times as much."""
        return 200.0 * (1 - self.momentum)

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        """torch's SGD; the betas and epsilon of the settings have no use here."""
        return torch.optim.SGD(groups, momentum=self.momentum, weight_decay=settings.weight_decay)

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        return 4 * shape.numel() if self.momentum else 0
