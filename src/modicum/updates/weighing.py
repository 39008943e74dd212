"""Auto-RGN and Auto-SNR (arXiv 2210.11466): step sizes by the gradients.

RGN_p is the mean over some steps of |g|/|p|; the step of p is multiplied by RGN_p / max_q RGN_q.
`snr` brings the means over entries of mean(g)^2 / var(g) to 0..1 over all tensors, and lets
those step that reach `threshold`. docs/updates.md has the departures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from modicum.limits import Limits, Share
from modicum.updates.base import Scheduled
from modicum.updates.members import Steps
from modicum.updates.schedule import Decision, Named, Schedule, top

FLOOR = 1e-3  # root mean square below which a tensor counts as if it had this
TINY = 1e-30  # far below the variance of any gradient that moves a number


class Weighing(Schedule, ABC):
    """Multipliers of the steps, measured anew every so often. Members say what is measured."""

    remembered = ("due", "seen", "weights")

    def __init__(self, method: Any, model: nn.Module, chosen: Named, seed: int) -> None:
        super().__init__()
        self.method, self.parameters, self.window = method, chosen, method.window
        self.due = method.window  # the step after which the multipliers are next computed
        self.seen = 0

    @abstractmethod
    def measure(self) -> dict[str, float] | None:
        """A value above 0 or 0 for every tensor, from what was seen; None: not enough was."""

    @abstractmethod
    def weigh(self, values: Mapping[str, float]) -> dict[str, float]:
        """The multipliers that come of the values."""

    @property
    def measuring(self) -> bool:
        """Whether the next gradients are measured."""
        return self.seen >= self.due - self.window

    def decide(self, steps: int) -> Decision | None:
        self.seen = steps
        values = self.measure() if steps >= self.due else None
        if values is None:
            return None
        self.weights = self.weigh(values)
        self.due = steps + self.method.every
        kinds: dict[str, list[float]] = {}
        for name, weight in self.weights.items():
            kinds.setdefault(".".join(name.split(".")[-2:]), []).append(weight)
        evidence = {
            "weights": {kind: fmean(weights) for kind, weights in sorted(kinds.items())},
            "top": top(values),
            "moving": sum(weight > 0 for weight in self.weights.values()),
        }
        return Decision(frozenset(self.parameters), evidence, restart=self.method.reset)

    def gradients(self, found: Mapping[str, Tensor]) -> None:
        self.seen += 1


class RgnSchedule(Weighing):
    """By the norm of the gradient over that of the tensor."""

    remembered = (*Weighing.remembered, "ratios")
    ratios: tuple[dict[str, float], ...] = ()  # of the measured steps, the last `window` of them

    def gradients(self, found: Mapping[str, Tensor]) -> None:
        if self.measuring:
            ratios = []
            for name, gradient in found.items():
                parameter = self.parameters[name].detach()
                size = torch.linalg.vector_norm(parameter, dtype=torch.float32)
                least = FLOOR * parameter.numel() ** 0.5
                ratios.append(torch.linalg.vector_norm(gradient) / size.clamp(min=least))
            now = dict(zip(found, torch.stack(ratios).tolist(), strict=True))
            self.ratios = (*self.ratios, now)[-self.window :]
        super().gradients(found)

    def measure(self) -> dict[str, float] | None:
        names = self.ratios[-1] if self.ratios else ()
        means = {n: fmean(step[n] for step in self.ratios if n in step) for n in names}
        if not any(means.values()):
            return None
        self.ratios = ()
        return means

    def weigh(self, values: Mapping[str, float]) -> dict[str, float]:
        most = max(values.values())
        return {name: value / most for name, value in values.items()}


class SnrSchedule(Weighing):
    """By the mean of the gradient, squared, over its variance among groups."""

    remembered = (*Weighing.remembered, "groups")
    remembered_tensors = ("means", "squares")
    kept_numbers = 2  # means and squares over groups
    ever_by_group = True
    by_group = Weighing.measuring  # type: ignore[assignment]

    def __init__(self, method: Any, model: nn.Module, chosen: Named, seed: int) -> None:
        super().__init__(method, model, chosen, seed)
        self.threshold, self.groups = method.threshold, 0
        """How many groups the means and squares are of."""
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}  # sums of squared distances from the mean

    def group_gradients(self, found: Mapping[str, Tensor]) -> None:
        """Add one group to the means and squares (Welford); one that is not finite is left out."""
        norms = torch.stack(torch._foreach_norm(list(found.values())))
        if not bool(norms.isfinite().all()):
            return
        self.groups += 1
        for name, gradient in found.items():
            mean = self.means.setdefault(name, torch.zeros_like(gradient))
            square = self.squares.setdefault(name, torch.zeros_like(gradient))
            distance = gradient - mean
            mean += distance / self.groups
            square += distance * (gradient - mean)

    def measure(self) -> dict[str, float] | None:
        if self.groups < 2:
            return None
        values = {}
        for name, mean in self.means.items():
            variance = self.squares[name] / (self.groups - 1)
            # Entries without either are 0.
            values[name] = float((mean.square() / (variance + TINY)).mean())
        self.groups, self.means, self.squares = 0, {}, {}
        return values

    def weigh(self, values: Mapping[str, float]) -> dict[str, float]:
        """1 for those that reach the threshold between the least (0) and the most (1)."""
        least, most = min(values.values()), max(values.values())
        span = most - least
        shares = {name: (v - least) / span if span else 1.0 for name, v in values.items()}
        return {name: float(share >= self.threshold) for name, share in shares.items()}


class Rgn(Scheduled):
    """Everything trains, each tensor's step scaled by its relative gradient norm."""

    begins = RgnSchedule
    every: Steps = 20
    window: Steps = 5
    reset: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        Limits(1, self.every).check(f"{self.name}: window (every is the most)", self.window)


class Snr(Rgn):
    """Only tensors whose gradient has much signal for its noise step."""

    begins = SnrSchedule
    threshold: Share = 0.5
