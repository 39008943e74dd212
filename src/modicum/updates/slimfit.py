"""SlimFit (Ardakani et al. 2023, arXiv 2305.18513): what has moved most trains, in each step anew.

The units are the matrices and the norm weights; biases of other kinds always train. Every
unit has a distance, at first a huge random number, so that each is tried. The lowest
int(rate * units) freeze, the others train; after a step a unit that trained has the
distance mean(|w_old - w_new| / |w_old|), one that rested keeps what it had.

Departures: units are chosen at every rollout, which is every step unless a rollout serves
several; |w_old| has 1e-8 added, as the reference code divides by zero. Of the paper's memory savings only
gradients and, unless `state` is keep, optimizer state are had here: quantised activations
are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from modicum.types import UserError
from modicum.updates.base import DensePrepared, Method, Prepared, Selection
from modicum.updates.dense import Full
from modicum.updates.layout import layout
from modicum.updates.schedule import Decision, Policy, Schedule

HUGE = 1e10  # distances at the start are uniform below this
EPSILON = 1e-8
SHOWN = 5  # distances in the evidence


class SlimFitSchedule(Schedule):
    """Which units train: those with the largest distances."""

    remembered: ClassVar[tuple[str, ...]] = ("distances", "untried", "chosen", "begun")
    step_numbers: ClassVar[int] = 1  # what the units were before the step

    def __init__(
        self, method: SlimFit, units: list[str], always: frozenset[str], seed: int
    ) -> None:
        super().__init__()
        self.always, self.policy = always, method.state
        self.count = len(units) - int(method.rate * len(units))
        """How many units train at a time."""
        drawn = np.random.default_rng([seed, 0]).random(len(units)) * HUGE
        self.distances: dict[str, float] = dict(zip(units, drawn.tolist(), strict=True))
        self.untried = sorted(units)
        self.chosen = self._largest()
        self.begun = False
        self.old: dict[str, Tensor] = {}
        self.start = self.always.union(self.chosen)

    def _largest(self) -> list[str]:
        far = sorted(self.distances, key=lambda name: (-self.distances[name], name))
        return sorted(far[: self.count])

    def decide(self, steps: int) -> Decision | None:
        """Other units, if their distances are larger now."""
        chosen = self._largest()
        if self.begun and chosen == self.chosen:
            return None
        self.begun, self.chosen = True, chosen
        tried = {n: d for n, d in self.distances.items() if n not in self.untried}
        far = sorted(tried, key=lambda name: (-tried[name], name))[:SHOWN]
        evidence = {
            "units": len(chosen),
            "untried": len(self.untried),
            "farthest": {name: tried[name] for name in far},
        }
        return Decision(self.always.union(chosen), evidence)

    def stepping(self, values: Mapping[str, Tensor]) -> None:
        """Remember the units that train."""
        self.old = {name: values[name].detach().clone() for name in self.chosen}

    def stepped(self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Measure how far they went."""
        distances = [
            ((values[name].detach() - old).abs() / (old.abs() + EPSILON)).mean()
            for name, old in self.old.items()
        ]
        self.distances |= dict(zip(self.old, torch.stack(distances).tolist(), strict=True))
        self.untried = [name for name in self.untried if name not in self.old]
        self.old = {}

    def typical(self, parameters: Mapping[str, nn.Parameter]) -> list[frozenset[str]]:
        """The sets of the first round, in which every unit is tried."""
        order = sorted(self.distances, key=lambda name: -self.distances[name])
        parts = range(0, len(order) - self.count + 1, self.count)
        return [self.always.union(order[at : at + self.count]) for at in parts]


@dataclass(frozen=True)
class SlimFit(Method):
    """Matrices and norms that move most for their size train, the others rest."""

    name: ClassVar[str] = "slimfit"
    examples: ClassVar[tuple[str, ...]] = ("slimfit", "slimfit(rate=0.5, state='reset') @ last(2)")
    rate: float = 0.9
    state: Policy = "keep"

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"{self}: rate, the share that rests, must be at least 0 and below 1")

    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        places = layout(model).places
        chosen = (where or Full()).select(model)
        units = [
            name
            for name, parameter in chosen.items()
            if parameter.dim() > 1 or ("norm" in (p := places[name].parts) and "bias" not in p)
        ]
        if not units:
            raise UserError(f"{self} @ {where}: no matrix or norm is selected")
        always = frozenset(chosen.keys() - set(units))
        return DensePrepared(model, chosen, schedule=SlimFitSchedule(self, units, always, seed))
