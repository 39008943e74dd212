"""The learning rate of each arm: the same number of tries for all, judged on the tune split.

A grid is the default rate of the arm's update times `tuning.factors`. With `halving` the
tries come in rounds (successive halving, Jamieson and Talwalkar 2016, arXiv 1502.07943): all
rates run for a part of the budget, the better half for twice as much, until one round has a
whole try's budget. Every round starts from the base, since a run's length may enter its
schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modicum.study.design import PlannedArm, Study


@dataclass(frozen=True)
class RateTry:
    """One tuning run of an arm; `accuracy` None: it has not run, or failed."""

    rate: float
    share: float
    """Of the budget of a run."""
    folder: str
    """Under the study's."""
    accuracy: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Choice:
    """The rate that an arm trains with, and how it was found."""

    rate: float
    at_edge: bool
    """The best rate is the lowest or the highest of its grid: a further one may be better."""
    tries: tuple[RateTry, ...] = ()


def grid(study: Study, default: float) -> list[float]:
    """The rates that an arm is tried with, rising."""
    return sorted(default * factor for factor in study.tuning.factors)


def shares(study: Study) -> list[float]:
    """The share of the budget in each round: one round without halving."""
    tuning = study.tuning
    rounds = 1 + math.floor(math.log2(len(tuning.factors))) if tuning.halving else 1
    return [tuning.share / 2**left for left in range(rounds - 1, -1, -1)]


def first_round(study: Study, arm: PlannedArm, default: float) -> list[RateTry]:
    """The tries of an arm that need no other's outcome; none where there is nothing to tune."""
    if arm.placebo or len(study.tuning.factors) < 2:
        return []
    return [_try(arm, rate, shares(study)[0]) for rate in grid(study, default)]


def next_round(
    study: Study, arm: PlannedArm, outcomes: Sequence[RateTry], share: float
) -> list[RateTry]:
    """The better half of a round, with more of the budget."""
    best = sorted(outcomes, key=_rank, reverse=True)[: math.ceil(len(outcomes) / 2)]
    return [_try(arm, rate, share) for rate in sorted(entry.rate for entry in best)]


def choose(study: Study, default: float, rounds: Sequence[Sequence[RateTry]]) -> Choice:
    """The best try of the last round; without tries the one factor of the default."""
    if not rounds or not rounds[0]:
        return Choice(
            default * (study.tuning.factors[0] if len(study.tuning.factors) == 1 else 1), False
        )
    tries = tuple(entry for done in rounds for entry in done)
    best = max(rounds[-1], key=_rank)
    rates = [entry.rate for entry in rounds[0]]
    return Choice(best.rate, best.rate in (min(rates), max(rates)), tries)


def _rank(entry: RateTry) -> tuple[bool, float, float]:
    """Higher is better; of equal ones the lower rate."""
    return entry.accuracy is not None, entry.accuracy or 0.0, -entry.rate


def _try(arm: PlannedArm, rate: float, share: float) -> RateTry:
    part = "" if share == 1 else f"-share-{share:.3g}"
    return RateTry(rate, share, f"cells/tune/{arm.slug}/rate-{rate:.2e}{part}")


def to_json(choice: Choice) -> dict[str, Any]:
    """As `tuning.json` holds it."""
    return {
        "learning_rate": choice.rate,
        "rate_at_edge": choice.at_edge,
        "tries": [dict(entry.__dict__) for entry in choice.tries],
    }
