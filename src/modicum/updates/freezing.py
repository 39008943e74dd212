"""What trains is chosen by how it moves: AutoFreeze and SlimFit.

*AutoFreeze* (arXiv 2102.01386): n is the L1 norm of a layer's gradients, summed over an interval
of steps with a signal; eta = |n_before - n_now| / n_before. The lowest layer whose eta reaches
the percentile is the new bottom; what is below freezes for good, with the first layer the
embedding. *SlimFit* (arXiv 2305.18513): a unit's distance is mean(|w_old - w_new| / |w_old|) of
its last step; the int(rate * units) lowest rest. Departures are in docs/updates.md."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from modicum.limits import Limits, ShareBelowOne
from modicum.types import UserError
from modicum.updates.base import Scheduled
from modicum.updates.layout import divided, layout
from modicum.updates.members import Steps
from modicum.updates.schedule import Decision, Named, Policy, Schedule, top

HUGE = 1e10  # distances at the start are uniform below this
EPSILON = 1e-8


class FreezingSchedule(Schedule):
    """Which layer is the lowest that trains; it only rises."""

    remembered = ("since", "lowest", "norms")
    remembered_tensors = ("sums",)
    kept_numbers = 1  # sums of gradients
    follows_length = True

    def __init__(self, method: Any, model: nn.Module, chosen: Named, seed: int) -> None:
        super().__init__()
        self.layers, self.below, self.above = divided(model, chosen)
        if not self.layers:
            raise UserError(f"{method}: no decoder layer is selected")
        self.method, self.policy = method, method.state
        self.length = 1  # steps with a signal in an interval
        self.since = 0  # steps that had been taken when the present one began
        self.lowest = min(self.layers)
        self.norms: dict[str, float] = {}  # n of the last interval, by layer (a text, as in JSON)
        self.sums: dict[str, Tensor] = {}

    def plan(self, total_steps: int) -> None:
        self.length = max(1, total_steps // self.method.intervals)

    def gradients(self, found: Mapping[str, Tensor]) -> None:
        for layer in self._training():
            for name in self.layers[layer] & found.keys():
                self.sums.setdefault(name, torch.zeros_like(found[name])).add_(found[name])

    def decide(self, steps: int) -> Decision | None:
        if steps - self.since < self.length:
            return None
        self.since = steps
        now = {layer: self._norm(layer) for layer in self._training()}
        self.sums = {}
        evidence: dict[str, Any] = {"norms": now}
        if self.norms:
            ema = self.method.ema
            old = {n: self.norms[str(n)] for n in now}
            smooth = {n: ema * old[n] + (1 - ema) * now[n] for n in now}
            change = {n: abs(old[n] - smooth[n]) / old[n] if old[n] > 0 else 0.0 for n in now}
            threshold = float(np.percentile(list(change.values()), self.method.percentile))
            self.lowest = min(n for n, eta in change.items() if eta >= threshold)
            evidence |= {"change": change, "threshold": threshold}
            now = smooth
        self.norms = {str(n): now[n] for n in self._training()}
        frozen = self.lowest > min(self.layers)
        below = frozenset() if frozen else self.below
        active = self.above.union(below, *(self.layers[layer] for layer in self._training()))
        evidence["lowest"] = self.lowest
        return Decision(active, evidence, restart=frozen and self.policy == "reset")

    def _training(self) -> list[int]:
        return [layer for layer in self.layers if layer >= self.lowest]

    def _norm(self, layer: int) -> float:
        names = sorted(self.layers[layer] & self.sums.keys())
        parts = [self.sums[name].abs().sum(dtype=torch.float64) for name in names]
        return float(torch.stack(parts).sum()) if parts else 0.0


class AutoFreeze(Scheduled):
    """Everything trains at first; layers whose gradients settle freeze from the bottom up."""

    begins = FreezingSchedule
    intervals: Steps = 20
    percentile: Annotated[float, Limits(0, 100)] = 50.0
    ema: ShareBelowOne = 0.0
    state: Policy = "reset"


class SlimFitSchedule(Schedule):
    """Which units train: those with the largest distances."""

    remembered = ("distances", "untried", "chosen", "begun")
    step_numbers = 1  # what the units were before the step

    def __init__(self, method: Any, model: nn.Module, chosen: Named, seed: int) -> None:
        super().__init__()
        places = layout(model).places
        norms = {n for n in chosen if "norm" in places[n].parts and "bias" not in places[n].parts}
        units = [name for name, p in chosen.items() if p.dim() > 1 or name in norms]
        if not units:
            raise UserError(f"{method}: no matrix or norm is selected")
        self.always, self.policy = frozenset(chosen.keys() - set(units)), method.state
        self.count = len(units) - int(method.rate * len(units))  # how many units train at a time
        drawn = np.random.default_rng([seed, 0]).random(len(units)) * HUGE
        self.distances: dict[str, float] = dict(zip(units, drawn.tolist(), strict=True))
        self.untried = sorted(units)
        self.chosen = self._largest()
        self.begun = False
        self.old: dict[str, Tensor] = {}
        self.start = self.always.union(self.chosen)

    def _largest(self) -> list[str]:
        return sorted(top(self.distances, self.count))

    def decide(self, steps: int) -> Decision | None:
        chosen = self._largest()
        if self.begun and chosen == self.chosen:
            return None
        self.begun, self.chosen = True, chosen
        tried = {n: d for n, d in self.distances.items() if n not in self.untried}
        evidence = {"units": len(chosen), "untried": len(self.untried), "farthest": top(tried)}
        return Decision(self.always.union(chosen), evidence)

    def stepping(self, values: Mapping[str, Tensor]) -> None:
        self.old = {name: values[name].detach().clone() for name in self.chosen}

    def stepped(self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        pairs = ((values[name].detach(), old) for name, old in self.old.items())
        distances = [((now - old).abs() / (old.abs() + EPSILON)).mean() for now, old in pairs]
        self.distances |= dict(zip(self.old, torch.stack(distances).tolist(), strict=True))
        self.untried = [name for name in self.untried if name not in self.old]
        self.old = {}

    def typical(self, parameters: Mapping[str, nn.Parameter]) -> list[frozenset[str]]:
        """The sets of the first round, in which every unit is tried."""
        order = sorted(self.distances, key=lambda name: -self.distances[name])
        parts = range(0, len(order) - self.count + 1, self.count)
        return [self.always.union(order[at : at + self.count]) for at in parts]


class SlimFit(Scheduled):
    """Matrices and norms that move most for their size train, the others rest."""

    begins = SlimFitSchedule
    rate: ShareBelowOne = 0.9
    state: Policy = "keep"
