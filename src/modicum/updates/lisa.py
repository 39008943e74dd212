"""LISA (Pan et al. 2024, arXiv 2403.17919): a few layers at random train, then others.

Every `every` optimizer steps `layers` decoder layers are drawn uniformly without
replacement; embedding, head and final norm train all the time (`ends=True`). As the
embedding trains, backward walks the whole model; `ends=False` leaves them out, and
backward then stops at the lowest drawn layer. Departures: switches happen at rollout
boundaries only; the optimizer's state of what stops is deleted (`state="reset"`), where
the reference code keeps it and so grows to the memory of full training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar

from torch import nn

from modicum.spec import within
from modicum.types import UserError
from modicum.updates.base import DensePrepared, Method, Prepared, Selection
from modicum.updates.dense import Full
from modicum.updates.layout import MAX_LAYERS, divided, layout
from modicum.updates.schedule import MAX_STEPS, Decision, Policy, Turns

MOST_SETS = 64  # for the preview's average; beyond, so many are drawn


class LisaSchedule(Turns):
    """Which layers train, drawn anew every so many steps."""

    def __init__(
        self, method: Lisa, layers: Mapping[int, frozenset[str]], always: frozenset[str], seed: int
    ) -> None:
        super().__init__(method.every, method.state, seed)
        self.layers, self.always, self.count = layers, always, method.layers
        self.start = self._names(self._draw(0))

    def _draw(self, number: int) -> list[int]:
        drawn = self.rng(number).choice(sorted(self.layers), self.count, replace=False)
        return sorted(drawn.tolist())

    def _names(self, layers: Sequence[int]) -> frozenset[str]:
        return self.always.union(*(self.layers[layer] for layer in layers))

    def turn(self, number: int) -> Decision:
        """New layers, whatever the last ones were."""
        layers = self._draw(number)
        return Decision(self._names(layers), {"layers": layers, "draw": number + 1})

    def typical(self, parameters: Mapping[str, nn.Parameter]) -> list[frozenset[str]]:
        """All sets of so many layers, or some of them."""
        if comb(len(self.layers), self.count) <= MOST_SETS:
            return [self._names(layers) for layers in combinations(self.layers, self.count)]
        return [self._names(self._draw(number)) for number in range(MOST_SETS)]


@dataclass(frozen=True)
class Lisa(Method):
    """A few random layers train at a time, others after every so many steps."""

    name: ClassVar[str] = "lisa"
    examples: ClassVar[tuple[str, ...]] = (
        "lisa(layers=1, every=2)",
        "lisa(layers=1, every=1, ends=False, state='keep')",
        "lisa(layers=1, every=1) @ last(2)",
    )
    layers: int = 2
    every: int = 20
    ends: bool = True
    state: Policy = "reset"

    def __post_init__(self) -> None:
        within("lisa: layers", self.layers, 1, MAX_LAYERS)
        within("lisa: every", self.every, 1, MAX_STEPS)

    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        chosen = (where or Full()).select(model)
        layers, below, above = divided(layout(model), chosen)
        if self.layers > len(layers):
            raise UserError(f"{self}: there are only {len(layers)} layers to draw from")
        always = below | above if self.ends else frozenset()
        named = always.union(*layers.values())
        trainable = {n: p for n, p in chosen.items() if n in named}
        return DensePrepared(model, trainable, schedule=LisaSchedule(self, layers, always, seed))
