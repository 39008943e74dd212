"""Arms against a control: intervals, paired differences, tests, verdicts (docs/statistics.md).

Each arm has one row of problem scores for every seed that finished. Seeds are paired with the
control's by number (same data order, same sampling noise), problems by place.

    S seed, I problem
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modicum import stats
from modicum.results import ArmResult, ClaimTest, Variance
from modicum.stats import Interval
from modicum.study.estimate import (
    Estimate,
    Table,
    difference,
    estimate,
    retention,
    seeds_needed,
    spread,
    table,
)

ALPHA = 0.05
Rows = Mapping[int, NDArray[np.float64]]


def arm_interval(scores_SI: ArrayLike) -> Interval:
    """The mean of scores, seeds x problems, with its 95 % interval over both, within [0, 1]."""
    return estimate(table(scores_SI), (0.0, 1.0), alone=True).interval(0.95)


def gain_interval(scores_SI: ArrayLike, base_I: ArrayLike) -> Interval:
    """The mean of scores minus the untrained model's on the same problems, as `arm_interval`."""
    gains_SI = table(scores_SI) - table(base_I)
    return estimate(gains_SI, (-1.0, 1.0), alone=True).interval(0.95)


def paired(arm_SI: ArrayLike, control_SI: ArrayLike, rng: np.random.Generator) -> Estimate:
    """The estimate of arm - control, whose rows are the same seeds in the same order."""
    return estimate(table(arm_SI) - table(control_SI), (-1.0, 1.0), rng)


def variance(scores_SI: ArrayLike) -> Variance | None:
    """The variances of seeds, problems and the rest; None for a single seed."""
    found = spread(table(scores_SI))
    return found.components if found.num_seeds > 1 else None


def compare(
    scores: Mapping[str, Rows],
    control: str,
    base_I: ArrayLike,
    margin: float,
    rng: np.random.Generator,
    placebos: Collection[str] = (),
) -> dict[str, ArmResult]:
    """Every arm against the control; `scores` has by arm and seed one score a problem.

    All arms are bootstrapped with the same random numbers: none depends on which others there are.
    UserError for a single problem.
    """
    base = table(base_I)
    draw = int(rng.integers(2**63))
    others = {name: {} if name == control else scores[control] for name in scores}
    arms = {name: _arm(name, rows, others[name], base, draw) for name, rows in scores.items()}
    learned = arms[control][0].gain
    clear = learned is not None and learned.low > 0
    tests = _tests({n: d for n, (_, d) in arms.items() if d and n not in placebos}, margin)
    open_arms = sum(not by_name["noninferior"].holds for by_name in tests.values())
    found = {}
    for name, (arm, gap) in arms.items():
        verdict = _verdict(arm, tests.get(name), name == control, name in placebos, clear)
        found[name] = replace(arm, tests=tests.get(name), verdict=verdict)
        if gap and verdict == "undecided" and clear and name in tests:
            needed = seeds_needed(gap.spread, margin, ALPHA / open_arms)
            found[name] = replace(found[name], seeds_needed=needed)
    return found


def _arm(
    name: str, rows: Rows, control: Rows, base_I: Table, draw: int
) -> tuple[ArmResult, Estimate | None]:
    """What one arm's scores give, not yet judged; `control` is empty for the control itself."""
    if not rows:
        return ArmResult(name, "", "", retention_note="no seed finished"), None
    scores_SI = np.stack([rows[seed] for seed in sorted(rows)])
    by_seed = {str(seed): float(np.mean(rows[seed])) for seed in sorted(rows)}
    bands = arm_interval(scores_SI), gain_interval(scores_SI, base_I)
    below = sum(reached < base_I.mean() - stats.ROUNDING for reached in by_seed.values())
    alone = ArmResult(name, "", "", by_seed=by_seed, accuracy=bands[0], gain=bands[1])
    alone = replace(alone, below_base=stats.share_interval(below, len(by_seed)))
    if not control:
        return alone, None
    seeds = tuple(sorted(set(rows) & set(control)))
    if not seeds:
        why = "no seed finished both here and in the control"
        return replace(alone, retention_note=why), None
    arm_SI, control_SI = (np.stack([of[seed] for seed in seeds]) for of in (rows, control))
    found = paired(arm_SI, control_SI, np.random.default_rng(draw))
    compared = replace(alone, difference=difference(found))
    kept = retention(arm_SI, control_SI, base_I)
    if isinstance(kept, str):
        return replace(compared, retention_note=kept), found
    return replace(compared, retention=kept), found


def _tests(found: Mapping[str, Estimate], margin: float) -> dict[str, dict[str, ClaimTest]]:
    p_values = {
        "noninferior": [d.p_at_most(-margin) for d in found.values()],
        "superior": [min(1.0, 2 * d.p_at_most(0.0)) for d in found.values()],
        "equivalent": [max(d.p_at_most(-margin), d.p_at_least(margin)) for d in found.values()],
        "inferior": [min(1.0, 2 * d.p_at_least(0.0)) for d in found.values()],
    }
    adjusted = {test: stats.holm(values) for test, values in p_values.items()}
    tests: dict[str, dict[str, ClaimTest]] = {}
    for place, name in enumerate(found):
        after = {test: values[place] for test, values in adjusted.items()}
        held = {test for test, p in after.items() if p <= ALPHA}
        held -= set() if "noninferior" in held else {"superior", "equivalent"}
        before = {test: values[place] for test, values in p_values.items()}
        tests[name] = {t: ClaimTest(before[t], after[t], t in held) for t in p_values}
    return tests


def _verdict(
    arm: ArmResult, tests: Mapping[str, ClaimTest] | None, control: bool, placebo: bool, clear: bool
) -> str:
    """The class of an arm; where the control did not clearly gain there is nothing to match."""
    if arm.accuracy is None or arm.gain is None:
        return "failed"
    if control:
        return "control"
    if placebo:
        loses = "placebo loses" if arm.gain.high < 0 else "placebo"
        return "placebo gains" if arm.gain.low > 0 else loses
    matched = {"equivalent": "equivalent", "noninferior": "not worse"} if clear else {}
    words = {"superior": "better", **matched, "inferior": "worse"}
    held = (word for test, word in words.items() if tests and tests[test].holds)
    return next(held, "undecided")
