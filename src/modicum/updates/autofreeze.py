"""AutoFreeze (Liu, Agarwal, Venkataraman 2021, arXiv 2102.01386): the bottom freezes, step by step.

The run is cut into `intervals`. Over each the gradients of a layer are summed with their
signs, so that noise cancels; n is the L1 norm of the sum. From the second interval on the
change of a layer is eta = |n_before - n_now| / n_before, the threshold is a percentile of
eta over the layers that still train, and the lowest layer that reaches it is the new
bottom: what is below freezes for good, the embedding with the first layer. Final norm and
head go on training. The learning rate's schedule is not touched.

Departures: an interval counts steps with a signal only and ends at a rollout boundary; n
can be smoothed over intervals (`ema`, the weight of what was), as a policy gradient is
mostly noise; nothing is cached, since completions are new in every step. Moments are reset
at every decision once something is frozen, as the reference code does, or kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from modicum.spec import within
from modicum.types import UserError
from modicum.updates.base import DensePrepared, Method, Prepared, Selection
from modicum.updates.dense import Full
from modicum.updates.layout import divided, layout
from modicum.updates.schedule import MAX_STEPS, Decision, Policy, Schedule


class FreezingSchedule(Schedule):
    """Which layer is the lowest that trains; it only rises."""

    remembered: ClassVar[tuple[str, ...]] = ("since", "lowest")
    remembered_tensors: ClassVar[tuple[str, ...]] = ("sums",)
    kept_numbers: ClassVar[int] = 1  # sums of gradients

    def __init__(
        self,
        layers: Mapping[int, frozenset[str]],
        below: frozenset[str],
        above: frozenset[str],
        method: AutoFreeze,
    ) -> None:
        super().__init__()
        self.layers, self.below, self.above = layers, below, above
        self.method, self.policy = method, method.state
        self.length = 1
        """Steps with a signal in an interval."""
        self.since = 0
        """Steps that had been taken when the present one began."""
        self.lowest = min(layers)
        self.norms: dict[int, float] = {}
        """n of the last interval, by layer."""
        self.sums: dict[str, Tensor] = {}

    def plan(self, total_steps: int) -> None:
        self.length = max(1, total_steps // self.method.intervals)

    def gradients(self, found: Mapping[str, Tensor]) -> None:
        """Add to the sums of the layers that train."""
        for layer in self._training():
            for name in self.layers[layer] & found.keys():
                if name in self.sums:
                    self.sums[name] += found[name]
                else:
                    self.sums[name] = found[name].detach().clone()

    def decide(self, steps: int) -> Decision | None:
        """At the end of an interval, how far up the model is frozen."""
        if steps - self.since < self.length:
            return None
        self.since = steps
        now = {layer: self._norm(layer) for layer in self._training()}
        self.sums = {}
        evidence: dict[str, Any] = {"norms": now}
        if self.norms:
            ema = self.method.ema
            smooth = {n: ema * self.norms[n] + (1 - ema) * now[n] for n in now}
            change = {n: _change(self.norms[n], smooth[n]) for n in now}
            threshold = float(np.percentile(list(change.values()), self.method.percentile))
            self.lowest = min(n for n, eta in change.items() if eta >= threshold)
            evidence |= {"change": change, "threshold": threshold}
            now = smooth
        self.norms = {n: now[n] for n in self._training()}
        frozen = self.lowest > min(self.layers)
        below = frozenset() if frozen else self.below
        return Decision(
            self.above.union(below, *(self.layers[layer] for layer in self._training())),
            {**evidence, "lowest": self.lowest},
            restart=frozen and self.policy == "reset",
        )

    def _training(self) -> list[int]:
        return [layer for layer in self.layers if layer >= self.lowest]

    def _norm(self, layer: int) -> float:
        parts = [
            self.sums[name].abs().sum(dtype=torch.float64)
            for name in sorted(self.layers[layer] & self.sums.keys())
        ]
        return float(torch.stack(parts).sum()) if parts else 0.0

    def state(self) -> dict[str, Any]:
        # JSON keys are texts.
        norms = {str(layer): norm for layer, norm in self.norms.items()}
        return {**super().state(), "norms": norms}

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().load(state, tensors)
        self.norms = {int(layer): norm for layer, norm in state["norms"].items()}


def _change(before: float, now: float) -> float:
    return abs(before - now) / before if before > 0 else 0.0


@dataclass(frozen=True)
class AutoFreeze(Method):
    """Everything trains at first; layers whose gradients settle freeze from the bottom up."""

    name: ClassVar[str] = "autofreeze"
    examples: ClassVar[tuple[str, ...]] = (
        "autofreeze(intervals=4)",
        "autofreeze(intervals=5, percentile=90.0, ema=0.5, state='cpu') @ last(2)",
    )
    intervals: int = 20
    percentile: float = 50.0
    ema: float = 0.0
    state: Policy = "reset"

    def __post_init__(self) -> None:
        within("autofreeze: intervals", self.intervals, 1, MAX_STEPS)
        within("autofreeze: percentile", self.percentile, 0, 100)
        within("autofreeze: ema", self.ema, 0, 1, below=True)

    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        """Train what `where` selects, all if it is None; at least its last layer stays."""
        chosen = (where or Full()).select(model)
        layers, below, above = divided(layout(model), chosen)
        if not layers:
            raise UserError(f"{self} @ {where}: no decoder layer is selected")
        return DensePrepared(model, chosen, schedule=FreezingSchedule(layers, below, above, self))
