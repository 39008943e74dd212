"""Arms against a control: intervals, paired differences, tests, verdicts.

Each arm has one row of problem scores for every seed that finished. Seeds are paired with
the control's by number (same data order, same sampling noise), problems by place. Of the
difference d to the control, with the margin m fixed before:

    noninferior  H0: d <= -m         one-sided; its 90 % interval lies above -m
    superior     H0: d <= 0          two-sided p; only when noninferior holds (closed testing)
    equivalent   H0: |d| >= m        TOST, the larger of two one-sided p-values; 90 % inside
    inferior     H0: d >= 0          two-sided p

all at alpha, adjusted by Holm over the arms, test by test. Claims about 0 are two-sided, so
one arm's "better" or "worse" is what its 95 % interval says. A placebo is in no family.

    S seed, I problem
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modicum import stats
from modicum.stats import Difference, Interval
from modicum.study.estimate import Estimate, difference, estimate
from modicum.study.power import seeds_needed
from modicum.study.retention import retention
from modicum.study.twolevel import Components, Table, spread, table
from modicum.types import UserError

ALPHA = 0.05
TESTS = ("noninferior", "superior", "equivalent", "inferior")
Rows = Mapping[int, NDArray[np.float64]]
Verdict = Literal[
    "control", "better", "equivalent", "not worse", "worse", "undecided", "failed",
    "placebo gains", "placebo loses", "placebo",
]  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A p-value, Holm's adjusted one, and whether the claim holds."""

    p: float
    holm: float
    holds: bool


@dataclass(frozen=True)
class ArmComparison:
    """What the scores of one arm say; None where a number does not exist."""

    seeds: tuple[int, ...]
    """Those paired with the control's; of the control, its own."""
    by_seed: Mapping[str, float]
    """Accuracy of every seed that finished."""
    accuracy: Interval | None
    gain: Interval | None
    """Over the base; both with 95 % intervals."""
    difference: Difference | None
    tests: Mapping[str, Claim] | None
    retention: Interval | None
    retention_note: str
    """Why there is no retention."""
    seeds_needed: int | None
    """To settle an undecided arm."""
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Arm:
    """An arm's scores and what they give alone."""

    rows: Rows
    seeds: tuple[int, ...]
    accuracy: Interval | None
    gain: Interval | None
    difference: Estimate | None
    retention: Interval | str


def arm_interval(scores_SI: ArrayLike, level: float = 0.95, name: str = "an arm") -> Interval:
    """The mean of scores, seeds x problems, with its t-interval over both, within [0, 1]."""
    return estimate(table(name, scores_SI), (0.0, 1.0)).interval(level)


def gain_interval(scores_SI: ArrayLike, base_I: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of scores minus the untrained model's on the same problems, as `arm_interval`."""
    gains_SI = table("an arm", scores_SI) - table("the base", base_I)
    return estimate(gains_SI, (-1.0, 1.0)).interval(level)


def paired(arm_SI: ArrayLike, control_SI: ArrayLike, rng: np.random.Generator) -> Estimate:
    """The estimate of arm - control, whose rows are the same seeds in the same order.

    Raises UserError when the shapes differ.
    """
    tables = table("the arm", arm_SI), table("the control", control_SI)
    if tables[0].shape != tables[1].shape:
        raise UserError(
            "arm and control need the same seeds and problems, "
            f"not shapes {tables[0].shape} and {tables[1].shape}"
        )
    return estimate(tables[0] - tables[1], (-1.0, 1.0), rng)


def variance(scores_SI: ArrayLike) -> Components | None:
    """The variances of seeds, problems and the rest; None for a single seed."""
    found = spread(table("an arm", scores_SI))
    return found.components if found.num_seeds > 1 else None


def compare(
    scores: Mapping[str, Rows],
    control: str,
    base_I: ArrayLike,
    margin: float,
    rng: np.random.Generator,
    placebos: Collection[str] = (),
    alpha: float = ALPHA,
) -> dict[str, ArmComparison]:
    """Every arm against the control; `scores` has by arm and seed one score a problem.

    All arms are bootstrapped with the same random numbers, so that what one shows does not
    depend on which others there are. Raises UserError for scores that do not fit together.
    """
    if control not in scores:
        raise UserError(f"the control {control!r} is not among the arms: {', '.join(scores)}")
    if not 0 < margin < 1:
        raise UserError(f"the margin must lie between 0 and 1 (0.02 is 2 points), not {margin!r}")
    unknown = sorted(set(placebos) - (set(scores) - {control}))
    if unknown:
        raise UserError(f"the placebo {unknown[0]!r} is not an arm, or it is the control")
    base = table("the base", base_I)
    draw = int(rng.integers(2**63))
    arms = {
        name: _arm(name, rows, {} if name == control else scores[control], base, draw)
        for name, rows in scores.items()
    }
    learned = arms[control].gain
    clear = learned is not None and learned.low > 0
    tested = {
        name: arm.difference
        for name, arm in arms.items()
        if arm.difference is not None and name not in placebos
    }
    tests = _tests(tested, margin, alpha)
    open_arms = sum(not by_name["noninferior"].holds for by_name in tests.values())
    found = {}
    for name, arm in arms.items():
        verdict = _verdict(arm, tests.get(name), name == control, name in placebos, clear)
        settle = verdict == "undecided" and clear and name in tests and arm.difference is not None
        found[name] = ArmComparison(
            seeds=arm.seeds,
            by_seed={str(seed): float(np.mean(row)) for seed, row in sorted(arm.rows.items())},
            accuracy=arm.accuracy,
            gain=arm.gain,
            difference=difference(arm.difference) if arm.difference else None,
            tests=tests.get(name),
            retention=arm.retention if isinstance(arm.retention, Interval) else None,
            retention_note=arm.retention if isinstance(arm.retention, str) else "",
            seeds_needed=seeds_needed(arm.difference.spread, margin, alpha / open_arms)
            if settle and arm.difference
            else None,
            verdict=verdict,
        )
    return found


def _arm(name: str, rows: Rows, control: Rows, base_I: Table, draw: int) -> _Arm:
    """What one arm's scores give; `control` is empty for the control itself."""
    if not rows:
        return _Arm(rows, (), None, None, None, "no seed finished")
    scores_SI = _stack(name, rows, sorted(rows), base_I)
    alone = (
        estimate(scores_SI, (0.0, 1.0)).interval(0.95),
        estimate(scores_SI - base_I, (-1.0, 1.0)).interval(0.95),
    )
    if not control:
        return _Arm(rows, tuple(sorted(rows)), *alone, None, "")
    seeds = tuple(sorted(set(rows) & set(control)))
    if not seeds:
        return _Arm(rows, (), *alone, None, "no seed finished both here and in the control")
    arm_SI = _stack(name, rows, seeds, base_I)
    control_SI = _stack("the control", control, seeds, base_I)
    found = paired(arm_SI, control_SI, np.random.default_rng(draw))
    return _Arm(rows, seeds, *alone, found, retention(arm_SI, control_SI, base_I))


def _stack(name: str, rows: Rows, seeds: Collection[int], base_I: Table) -> Table:
    lengths = {np.shape(rows[seed]) for seed in seeds}
    if lengths != {(base_I.shape[1],)}:
        raise UserError(
            f"{name} needs one score for each of the base's {base_I.shape[1]} problems in "
            f"every seed, not shapes {sorted(lengths)}"
        )
    return table(name, np.stack([rows[seed] for seed in seeds]))


def _tests(
    found: Mapping[str, Estimate], margin: float, alpha: float
) -> dict[str, dict[str, Claim]]:
    """The four tests of every arm, adjusted by Holm over the arms."""
    p_values = {
        "noninferior": [d.p_at_most(-margin) for d in found.values()],
        "superior": [min(1.0, 2 * d.p_at_most(0.0)) for d in found.values()],
        "equivalent": [max(d.p_at_most(-margin), d.p_at_least(margin)) for d in found.values()],
        "inferior": [min(1.0, 2 * d.p_at_least(0.0)) for d in found.values()],
    }
    adjusted = {test: stats.holm(values) for test, values in p_values.items()}
    tests: dict[str, dict[str, Claim]] = {}
    for place, name in enumerate(found):
        first = adjusted["noninferior"][place] <= alpha
        tests[name] = {
            test: Claim(
                p_values[test][place],
                adjusted[test][place],
                adjusted[test][place] <= alpha
                and (first or test not in ("superior", "equivalent")),
            )
            for test in TESTS
        }
    return tests


def _verdict(
    arm: _Arm, tests: Mapping[str, Claim] | None, control: bool, placebo: bool, clear: bool
) -> Verdict:
    """The class of an arm; where the control did not clearly gain there is nothing to match."""
    if arm.accuracy is None or arm.gain is None:
        return "failed"
    if control:
        return "control"
    if placebo:
        if arm.gain.low > 0:
            return "placebo gains"
        return "placebo loses" if arm.gain.high < 0 else "placebo"
    if tests is None:
        return "undecided"
    if tests["superior"].holds:
        return "better"
    if clear and tests["equivalent"].holds:
        return "equivalent"
    if clear and tests["noninferior"].holds:
        return "not worse"
    return "worse" if tests["inferior"].holds else "undecided"
