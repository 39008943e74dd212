"""Optimizers as updates: `sgd`, `sgd @ last(2)`, `galore(rank=4) @ (lora(rank=8) @ last(1))`.

Alone an optimizer moves every tensor of the model, `@` an update what that update trains.
What trains, when, and from which start stays the update's; only the rule that turns
gradients into steps is another. As `@` binds from the left, `(sgd @ lora) @ last(2)` is
read as `sgd @ (lora @ last(2))`. All get the gradient of the whole batch, clipped.

Default rates over AdamW's come from single runs of 15 steps on the tiny base (docs/updates.md).
The sources give none for RL.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import nn

from modicum.types import UserError
from modicum.updates.base import Method, Placed, Prepared, Selection
from modicum.updates.dense import Full
from modicum.updates.members import Member, Pair, ShareBelowOne
from modicum.updates.rules import AdamWRule, Rule, SgdRule

Trains = Selection | Method | Placed


class OptimizerMember(Member):
    """An optimizer that can be told for what: `sgd @ lora(rank=4)`."""

    faster = 1.0
    """Its default rate, over that of AdamW."""
    kind = "optimizers"

    @property
    def rate_scale(self) -> float:  # type: ignore[override]
        """The default learning rate, over that of full training."""
        return self.faster

    @abstractmethod
    def rule(self, seed: int) -> Rule:
        """The rule; what is random in it is drawn from `seed`."""

    def check(self, prepared: Prepared) -> None:
        """UserError when this optimizer has nothing to do for what trains."""

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        return Optimized(self, Full()).apply(model, seed)

    def __matmul__(self, update: object) -> Optimized:
        _no_second(self, update)
        return Optimized(self, update) if isinstance(update, Trains) else NotImplemented


class Optimized(Pair):
    """An optimizer and the update whose tensors it moves."""

    sign = "@"

    @property
    def rate_scale(self) -> float:
        """The optimizer's, over Adam's, times the update's."""
        return self.left.rate_scale * self.right.rate_scale

    def apply(self, model: nn.Module, seed: int = 0) -> Prepared:
        """Apply the update and let the optimizer move what it trains."""
        prepared = self.right.apply(model, seed)
        if type(prepared.rule) is not AdamWRule:
            raise UserError(f"{self}: {self.right} has an optimizer of its own; leave one out")
        prepared.rule = self.left.rule(seed)
        self.left.check(prepared)
        return prepared

    def __matmul__(self, where: object) -> Optimized:
        _no_second(self, where)
        if isinstance(self.right, Method) and isinstance(where, Selection):
            return Optimized(self.left, self.right @ where)
        return NotImplemented


def _no_second(left: object, right: object) -> None:
    if isinstance(right, OptimizerMember | Optimized):
        raise UserError(f"{left} @ {right}: two optimizers cannot move one model; leave one out")


@dataclass(frozen=True)
class Sgd(OptimizerMember):
    """Plain gradient descent: no optimizer state without momentum, and far larger rates."""

    name = "sgd"
    faster = 200.0
    examples = (
        "sgd",
        "sgd(momentum=0.9) @ last(1)",
        "sgd @ (lora(rank=2) @ last(1))",
    )
    momentum: ShareBelowOne = 0.0

    @property
    def rate_scale(self) -> float:  # type: ignore[override]
        """Under momentum steps add up to 1/(1 - momentum) times as much."""
        return self.faster * (1 - self.momentum)

    def rule(self, seed: int) -> Rule:
        return SgdRule(self.momentum)
