"""The learning rate of each arm: the same number of tries for all, judged on the tune split.

A grid is the default rate of the arm's update times `tuning.factors`. With `halving` the
tries come in rounds (successive halving, Jamieson and Talwalkar 2016, arXiv 1502.07943): all
rates run for a part of the budget, the better half for twice as much, until one round has a
whole try's budget. Every round starts from the base, since a run's length may enter its
schedule.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modicum.results import TuningRun
from modicum.study.design import PlannedArm, Study


@dataclass(frozen=True)
class Choice:
    """The rate that an arm trains with, and how it was found, as `tuning.json` holds it."""

    learning_rate: float = 0.0
    rate_at_edge: bool = False
    """The best of three rates or more is the lowest or highest: a further one may be better."""
    tries: tuple[TuningRun, ...] = ()


def shares(study: Study) -> list[float]:
    """The share of the budget in each round: one round without halving."""
    tuning = study.tuning
    rounds = 1 + math.floor(math.log2(len(tuning.factors))) if tuning.halving else 1
    return [tuning.share / 2**left for left in range(rounds - 1, -1, -1)]


def first_round(study: Study, arm: PlannedArm, default: float) -> list[TuningRun]:
    """The tries of an arm that need no other's outcome; none where there is nothing to tune."""
    if arm.placebo or len(study.tuning.factors) < 2:
        return []
    rates = sorted(default * factor for factor in study.tuning.factors)
    return [_try(arm, rate, shares(study)[0]) for rate in rates]


def next_round(
    study: Study, arm: PlannedArm, outcomes: Sequence[TuningRun], share: float
) -> list[TuningRun]:
    """The better half of a round, with more of the budget."""
    best = sorted(outcomes, key=_rank, reverse=True)[: math.ceil(len(outcomes) / 2)]
    return [_try(arm, rate, share) for rate in sorted(entry.rate for entry in best)]


def choose(study: Study, default: float, rounds: Sequence[Sequence[TuningRun]]) -> Choice:
    """The best try of the last round; without tries the one factor of the default."""
    if not rounds or not rounds[0]:
        factors = study.tuning.factors
        return Choice(default * (factors[0] if len(factors) == 1 else 1))
    tries = tuple(entry for done in rounds for entry in done)
    best = max(rounds[-1], key=_rank)
    rates = [entry.rate for entry in rounds[0]]
    return Choice(best.rate, len(rates) > 2 and best.rate in (min(rates), max(rates)), tries)


def _rank(entry: TuningRun) -> tuple[bool, float, float]:
    """Higher is better; of equal ones the lower rate."""
    return entry.accuracy is not None, entry.accuracy or 0.0, -entry.rate


def _try(arm: PlannedArm, rate: float, share: float) -> TuningRun:
    part = "" if share == 1 else f"-share-{share:.3g}"
    return TuningRun(rate, share, f"cells/tune/{arm.slug}/rate-{rate:.2e}{part}")
