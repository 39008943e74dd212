"""The units of a scan (layers, blocks of layers, parts) and their ranking by what they gain.

    gain          accuracy of the trained model minus the base's, on the same problems
    contribution  gain of a unit / gain of `full` (Zhang et al. 2026, arXiv 2607.01232)

A gain has two intervals: over seeds (their mean accuracies, which is what a claim about
the unit needs), and over problems (paired with the base, scores averaged over seeds: what
a claim about these trained models needs). A contribution exists only when all intervals
of full's gain lie above 0. Departure from the paper: it trains long runs of large models;
here budget and model are the user's, and a short budget ranks how fast units learn.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from modicum.types import UserError

Over = Literal["layers", "blocks", "parts"]
FULL = "full"


@dataclass(frozen=True)
class Unit:
    """One place to train: its short label and its selection."""

    label: str
    place: str


@dataclass(frozen=True)
class Trial:
    """One run of a scan; `rate` None is the update's default."""

    unit: str
    update: str
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """Of its run folder."""
        words = "".join(c if c.isalnum() else "-" for c in self.update).strip("-")
        rate = "" if self.rate is None else f"-rate{self.rate:g}"
        return f"{words}{rate}-seed{self.seed}"


@dataclass(frozen=True)
class TrialOutcome:
    """What a run came to; a run that stopped itself has only `failed`, which says why."""

    trial: Trial
    scores: tuple[float, ...] = ()
    """By problem."""
    learning_rate: float | None = None
    parameters: int | None = None
    seconds: float = 0.0
    failed: str = ""

    @property
    def accuracy(self) -> float:
        """Mean of the scores."""
        return fmean(self.scores)


@dataclass(frozen=True)
class Standing:
    """One unit's place in the ranking; None where a number does not exist."""

    unit: str
    update: str
    gain: float | None
    by_seed: tuple[float, ...]
    """The gain of every seed."""
    over_seeds: tuple[float, float] | None
    """95 % t-interval of the gain over seeds; None for a single seed."""
    over_problems: tuple[float, float] | None
    """95 % interval of the gain over problems, paired with the base."""
    contribution: float | None
    level_with_best: bool
    """Whether the paired interval of the best unit's lead over this one holds 0."""
    learning_rate: float | None
    parameters: int | None
    seconds: float
    failed: tuple[str, ...]
    """Why runs of it stopped."""

    @property
    def clear(self) -> bool:
        """Whether the gain is above 0 by every interval that there is."""
        known = [band for band in (self.over_seeds, self.over_problems) if band]
        return bool(known) and all(low > 0 for low, _ in known)


def units(over: Over, num_layers: int, blocks: int, parts: Sequence[str]) -> list[Unit]:
    """The units of a model with `num_layers` layers and these `parts`."""
    if over == "layers":
        return [Unit(str(n), f"layers({n})") for n in range(num_layers)]
    if over == "parts":
        return [Unit(part, f"parts({part})") for part in parts]
    if not 1 < blocks <= num_layers:
        raise UserError(
            f"blocks must be at least 2 and at most {num_layers}, the number of layers, not {blocks}"
        )
    return [Unit(f"block {n}", f"surgical({n}, of={blocks})") for n in range(blocks)]


def together(over: Over, places: Sequence[str]) -> str:
    """The selection of several units at once, as a user would write it."""
    if over == "blocks":
        return " + ".join(places)
    inside = [place.removeprefix(f"{over}(").removesuffix(")") for place in places]
    return f"{over}({', '.join(inside)})"


def placed(method: str, sign: str, place: str) -> str:
    """`method sign place` with the brackets that it needs, or the place where there is no method."""
    if not method:
        return place
    left, right = (f"({text})" if " + " in text else text for text in (method, place))
    return f"{left} {sign} {right}"


def plan(
    updates: Mapping[str, str], seeds: Sequence[int], rates: Sequence[float | None]
) -> Iterator[Trial]:
    """All runs, seed by seed, so that what is there after a while has every unit in it.

    `updates` has the expression of every unit, by its label.
    """
    for seed in seeds:
        for rate in rates:
            for unit, update in updates.items():
                yield Trial(unit, update, seed, rate)


def judge(outcomes: Sequence[TrialOutcome], base: Sequence[float]) -> list[Standing]:
    """The units from the highest gain to the lowest, `full` last; `base` is its scores.

    With several rates a unit stands with that of its highest gain (fewest failures first),
    so each had as many tries. Ties keep their order.
    """
    found = {
        unit: _best_rate([o for o in outcomes if o.trial.unit == unit])
        for unit in dict.fromkeys(o.trial.unit for o in outcomes)
    }
    standings = {unit: _standing(runs, base) for unit, runs in found.items()}
    full = standings.get(FULL)
    measured = [u for u, s in standings.items() if s.gain is not None and u != FULL]
    measured.sort(key=lambda unit: -(standings[unit].gain or 0.0))
    failed = [u for u, s in standings.items() if s.gain is None and u != FULL]
    ranked = [*measured, *failed, *([FULL] if full else [])]
    scale = full.gain if full and full.clear else None
    return [
        dataclasses.replace(
            standings[unit],
            contribution=scale and (gain := standings[unit].gain) and gain / scale,
            level_with_best=bool(measured) and _level(found[measured[0]], found[unit]),
        )
        for unit in ranked
    ]


def _best_rate(runs: Sequence[TrialOutcome]) -> list[TrialOutcome]:
    """The runs of one unit at the rate where it stands best."""
    by_rate: dict[float | None, list[TrialOutcome]] = {}
    for run in runs:
        by_rate.setdefault(run.trial.rate, []).append(run)

    def rank(group: list[TrialOutcome]) -> tuple[int, float]:
        done = [run.accuracy for run in group if not run.failed]
        return len(done) - len(group), fmean(done) if done else -1.0

    return max(by_rate.values(), key=rank)


def _standing(runs: Sequence[TrialOutcome], base: Sequence[float]) -> Standing:
    done = [run for run in runs if not run.failed]
    start = fmean(base)
    by_problem = [fmean(scores) for scores in zip(*(run.scores for run in done), strict=True)]
    seeds = [run.accuracy for run in done]
    return Standing(
        unit=runs[0].trial.unit,
        update=runs[0].trial.update,
        gain=fmean(seeds) - start if done else None,
        by_seed=tuple(accuracy - start for accuracy in seeds),
        over_seeds=_limits(seeds, [start] * len(seeds), means=True) if len(done) > 1 else None,
        over_problems=_limits(by_problem, base) if done else None,
        contribution=None,
        level_with_best=False,
        learning_rate=done[0].learning_rate if done else runs[0].trial.rate,
        parameters=done[0].parameters if done else None,
        seconds=fmean(run.seconds for run in done) if done else 0.0,
        failed=tuple(f"seed {run.trial.seed}: {run.failed}" for run in runs if run.failed),
    )


def _limits(
    after: Sequence[float], before: Sequence[float], means: bool = False
) -> tuple[float, float]:
    """Of the change of scores by problem or, with `means`, of accuracies by seed."""
    from modicum import stats

    found = (stats.mean_interval if means else stats.paired_interval)(after, before)
    return found.low, found.high


def _level(best: Sequence[TrialOutcome], other: Sequence[TrialOutcome]) -> bool:
    """Whether the lead of `best` over `other` could be nothing: paired by seed, or by problem."""
    pairs = {run.trial.seed: run for run in other if not run.failed}
    both = [
        (run, pairs[run.trial.seed]) for run in best if run.trial.seed in pairs and not run.failed
    ]
    if not both:
        return False
    if len(both) > 1:
        means = [a.accuracy for a, _ in both], [b.accuracy for _, b in both]
        low, high = _limits(*means, means=True)
    else:
        low, high = _limits(both[0][0].scores, both[0][1].scores)
    return low <= 0 <= high
