"""modicum.study: mean squares, intervals, bootstrap, tests, retention, power, comparisons."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from modicum import stats
from modicum.results import ArmResult
from modicum.stats import Interval
from modicum.study.analysis import arm_interval, compare, paired
from modicum.study.estimate import (
    BOOTSTRAP,
    NO_SPREAD,
    ONE_SEED,
    T_INTERVAL,
    Spread,
    estimate,
    pivots,
    retention,
    spread,
)
from modicum.types import UserError

WIDE = (-1.0, 1.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noisy(
    seeds: int, problems: int, mean: float, sds: tuple[float, float, float], seed: int = 0
) -> NDArray[np.float64]:
    """A table with normal effects of seeds, problems and the rest."""
    draw = rng(seed)
    by_seed, by_problem, rest = sds
    return (
        mean
        + draw.normal(0, by_seed, (seeds, 1))
        + draw.normal(0, by_problem, (1, problems))
        + draw.normal(0, rest, (seeds, problems))
    )


def limits(found: Interval) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


# The table of seeds x problems.


def test_mean_squares_by_hand() -> None:
    # Rows average 1 and 3, columns 1.5, 2, 2.5; only two corners differ from their sum.
    found = spread(np.array([[1.0, 1.0, 1.0], [2.0, 3.0, 4.0]]))
    assert found.mean == 2
    assert found.seeds == pytest.approx(3 * (1 + 1) / 1)
    assert found.problems == pytest.approx(2 * (0.25 + 0 + 0.25) / 2)
    assert found.residual == pytest.approx(4 * 0.25 / 2)
    assert found.standard_error == pytest.approx(math.sqrt((6 + 0) / 6))


def test_components_are_what_the_table_was_made_of() -> None:
    found = spread(noisy(300, 400, 0.1, (0.02, 0.2, 0.3))).components
    assert math.sqrt(found.seed) == pytest.approx(0.02, rel=0.15)
    assert math.sqrt(found.problem) == pytest.approx(0.2, rel=0.1)
    assert math.sqrt(found.residual) == pytest.approx(0.3, rel=0.02)


def test_variance_of_a_single_seed_is_unknown() -> None:
    assert spread(np.array([[0.5, 0.25]])).components is None
    found = spread(np.array([[0.5, 0.25], [0.25, 0.5]])).components
    assert found is not None and found.seed == found.problem == 0 < found.residual


# Intervals.


def test_without_an_effect_of_problems_it_is_the_t_interval_of_seed_means() -> None:
    rows_S1 = np.array([[0.5], [0.375], [0.625]])
    # t(.975, 2) = 4.302653, t(.95, 2) = 2.919986, the standard error .125 / sqrt(3).
    table_SI = np.repeat(rows_S1, 8, axis=1)
    for level, t in ((0.95, 4.302653), (0.90, 2.919986)):
        found = estimate(table_SI, WIDE).interval(level)
        assert found.mean == pytest.approx(0.5)
        assert found.high - found.mean == pytest.approx(t * 0.125 / math.sqrt(3))
        assert found.mean - found.low == pytest.approx(t * 0.125 / math.sqrt(3))


def test_without_an_effect_of_seeds_it_is_the_t_interval_over_problems() -> None:
    column_I = rng().uniform(size=40)
    several = estimate(np.tile(column_I, (4, 1)), (0.0, 1.0)).interval(0.95)
    half = 2.022691 * stats.standard_error(column_I)  # t(.975, 39)
    mean = column_I.mean()
    assert limits(several) == pytest.approx((mean, mean - half, mean + half))


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_rare_successes_of_an_arm_have_an_interval_that_holds_the_truth(seeds: int) -> None:
    """64 problems, one in 21 always solved: the t-interval held the truth in 86 % of them."""
    found = rng(2)
    tables = (found.random((300, 1, 64)) < 0.047).astype(float).repeat(seeds, axis=1)
    base = np.zeros(64)
    for name, bands in (
        ("arm", [arm_interval(table) for table in tables]),
        ("gain", [arm_interval(table, base) for table in tables]),
        ("alone", [paired(table[:1], base[None], rng()).interval(0.95) for table in tables]),
    ):
        assert np.mean([band.low <= 0.047 <= band.high for band in bands]) > 0.94, name


def test_both_effects_add_by_squares() -> None:
    rows, columns = np.array([[-0.01], [0.0], [0.01]]), np.array([[-0.1, 0.0, 0.0, 0.1]])
    found = estimate(rows + columns, WIDE)
    # Standard errors .01 / sqrt(3) and .1 sqrt(2/3) / sqrt(4); t(.975, 2) and t(.975, 3).
    parts = 4.302653 * 0.01 / math.sqrt(3), 3.182446 * 0.1 * math.sqrt(2 / 3) / 2
    assert found.interval(0.95).high == pytest.approx(math.hypot(*parts), rel=1e-6)
    assert found.method == T_INTERVAL


def test_one_seed_is_the_paired_interval_over_problems() -> None:
    after, before = rng(1).uniform(size=(2, 30))
    found = paired(after, before, rng())
    expected = limits(stats.paired_interval(after, before))
    assert limits(found.interval(0.95)) == pytest.approx(expected)
    assert found.method == ONE_SEED
    assert limits(arm_interval(after, before)) == pytest.approx(expected)


@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_equal_scores_are_no_certainty(seeds: int) -> None:
    # Wilson for 0 of 10: z^2 / (10 + z^2) with z = 1.959964.
    ones = np.ones((seeds, 10))
    assert limits(arm_interval(ones)) == pytest.approx((1.0, 0.722467, 1.0), abs=1e-6)
    found = paired(ones, ones, rng())
    assert found.method == NO_SPREAD
    assert limits(found.interval(0.95)) == pytest.approx((0.0, -0.277533, 0.277533), abs=1e-6)
    # The one-sided p at which 1.644854^2 / (10 + 1.644854^2) = .212942 is .05.
    assert found.p_at_most(-0.212942) == pytest.approx(0.05, abs=1e-5)


def test_rounding_is_no_spread() -> None:
    # 2/3 - 1/3 and 1 - 2/3 differ by 6e-17.
    after, before = np.tile([2 / 3, 1.0], (3, 5)), np.tile([1 / 3, 2 / 3], (3, 5))
    assert np.ptp(after - before) > 0
    assert paired(after, before, rng()).method == NO_SPREAD
    assert stats.paired_interval(after[0], before[0]).low < 0.2


def test_limits_stay_within_what_is_possible() -> None:
    found = arm_interval([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert found.high == 1.0 and found.low == 0.0


# The bootstrap.


def test_more_than_five_seeds_are_bootstrapped_and_never_narrower() -> None:
    table_SI = noisy(6, 50, 0.0, (0.02, 0.1, 0.2))
    plain, resampled = estimate(table_SI, WIDE), estimate(table_SI, WIDE, rng())
    assert (plain.method, resampled.method) == (T_INTERVAL, BOOTSTRAP)
    assert resampled.interval(0.9).low <= plain.interval(0.9).low
    assert resampled.interval(0.9).high >= plain.interval(0.9).high
    assert estimate(table_SI[:5], WIDE, rng()).method == T_INTERVAL


def test_pivots_are_those_of_resampled_tables() -> None:
    table_SI = noisy(7, 15, 0.3, (0.1, 0.1, 0.2)) ** 3
    draw, slow = rng(5), []
    for _ in range(3000):
        rows, columns = draw.integers(0, 7, 7), draw.integers(0, 15, 15)
        found = spread(table_SI[rows][:, columns])
        slow.append((found.mean - table_SI.mean()) / found.standard_error)
    fast = pivots(table_SI, rng(), 3000)
    assert (np.diff(fast) >= 0).all() and len(fast) == 3000
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        # A quantile of 3,000 draws is off by about .03 in the middle and .1 in these tails.
        assert np.quantile(fast, share) == pytest.approx(np.quantile(slow, share), abs=0.25)


def test_same_generator_same_interval() -> None:
    after = noisy(8, 30, 0.5, (0.01, 0.1, 0.1)).clip(0, 1)
    before = noisy(8, 30, 0.5, (0.01, 0.1, 0.1), seed=1).clip(0, 1)
    once, again, other = (paired(after, before, rng(seed)).interval(0.9) for seed in (3, 3, 4))
    assert once == again != other


# p-values.


def test_the_p_value_is_that_of_the_t_test_on_seed_means() -> None:
    rows_S1 = np.array([[0.02], [0.05], [-0.01], [0.03]])
    error = rows_S1.std(ddof=1) / 2
    found = estimate(np.repeat(rows_S1, 5, axis=1), WIDE)
    for value in (-0.03, 0.0, 0.05):
        below = float(special.stdtr(3, (value - found.mean) / error))
        assert found.p_at_most(value) == pytest.approx(below, abs=1e-6)
        assert found.p_at_least(value) == pytest.approx(1 - below, abs=1e-6)


@pytest.mark.parametrize("seeds", [3, 8])
def test_p_values_and_intervals_agree(seeds: int) -> None:
    found = estimate(noisy(seeds, 40, 0.0, (0.02, 0.1, 0.2)), WIDE, rng())
    for level in (0.9, 0.95):
        band, one_sided = found.interval(level), (1 - level) / 2
        assert found.p_at_most(band.low) == pytest.approx(one_sided, abs=1e-4)
        assert found.p_at_most(band.low - 1e-3) < one_sided < found.p_at_most(band.low + 1e-3)
        assert found.p_at_least(band.high) == pytest.approx(one_sided, abs=1e-4)
        assert found.p_at_most(band.high) == pytest.approx(1 - one_sided, abs=1e-4)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.9, 0.6], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert stats.holm(p_values) == pytest.approx(adjusted)


def test_holm_refuses_what_is_no_p_value() -> None:
    for wrong in ([0.5, 1.2], [float("nan")]):
        with pytest.raises(UserError, match="between 0 and 1"):
            stats.holm(wrong)


# Retention.


def test_retention_of_one_seed_is_fiellers_interval() -> None:
    base, control, arm = rng(2).uniform(size=(3, 200)) * 0.5 + np.array([[0.0], [0.4], [0.3]])
    found = retention(arm[None], control[None], base[None])
    assert isinstance(found, Interval)
    up, down = arm - base, control - base
    covariance = np.cov(up, down) / 200
    t2 = float(special.stdtrit(199, 0.975)) ** 2
    roots = np.roots(
        [
            down.mean() ** 2 - t2 * covariance[1, 1],
            -2 * (up.mean() * down.mean() - t2 * covariance[0, 1]),
            up.mean() ** 2 - t2 * covariance[0, 0],
        ]
    )
    assert found.mean == pytest.approx(up.mean() / down.mean())
    assert [found.low, found.high] == pytest.approx(sorted(roots), abs=1e-5)


def test_retention_of_several_seeds_holds_where_the_combined_interval_holds_0() -> None:
    base = noisy(1, 60, 0.3, (0, 0.1, 0.1), seed=1)
    control = noisy(4, 60, 0.7, (0.03, 0.1, 0.1), seed=2)
    arm = noisy(4, 60, 0.6, (0.03, 0.1, 0.1), seed=3)
    found = retention(arm, control, base)
    assert isinstance(found, Interval) and found.low < found.mean < found.high

    def holds(ratio: float) -> bool:
        band = estimate(arm - base - ratio * (control - base), (-9.0, 9.0)).interval(0.95)
        return band.low <= 0 <= band.high

    assert holds(found.low + 1e-3) and holds(found.high - 1e-3)
    assert not holds(found.low - 1e-3) and not holds(found.high + 1e-3)


def test_retention_is_refused_where_the_control_did_not_clearly_gain() -> None:
    base = noisy(1, 60, 0.5, (0, 0.1, 0.1))
    unclear = base + noisy(3, 60, 0.01, (0.02, 0.1, 0.1), seed=1)
    assert retention(unclear, unclear, base) == "the control's own gain is not clear"
    lost = base + noisy(3, 60, -0.3, (0.02, 0.1, 0.1), seed=1)
    assert retention(lost, lost, base) == "the control lost accuracy"


def test_retention_of_an_arm_like_the_control_has_width() -> None:
    control = noisy(3, 60, 0.7, (0.01, 0.1, 0.1))
    found = retention(control, control, noisy(1, 60, 0.3, (0, 0.1, 0.1), seed=1))
    assert isinstance(found, Interval)
    assert found.mean == 1 and found.low < 0.9 and found.high > 1.1


# Power.


def test_seeds_needed_where_only_seeds_vary_is_that_of_the_t_test() -> None:
    # An effect of one standard deviation, one-sided 5 %, power 80 %: n = 8 (Cohen 1988).
    found = Spread(3, 100, 0.0, seeds=100 * 0.02**2, problems=0.0, residual=0.0)
    assert found.seeds_needed(0.02) == 8


def test_an_arm_far_below_is_settled_as_worse() -> None:
    # Two-sided 5 %, power 80 %, an effect of one standard deviation: n = 10 (Cohen 1988).
    found = Spread(3, 100, -0.03, seeds=100 * 0.03**2, problems=0.0, residual=0.0)
    assert found.seeds_needed(0.02) == 10


def test_more_seeds_do_not_help_where_problems_vary_too_much() -> None:
    found = Spread(3, 64, 0.0, seeds=0.01, problems=3 * 0.3**2, residual=0.01)
    assert found.seeds_needed(0.02) is None
    assert Spread(1, 64, 0.0, 0.0, 0.01, 0.0).seeds_needed(0.02) is None


def test_the_seeds_needed_settle_four_of_five_times() -> None:
    sds, problems = (0.015, 0.05, 0.1), 100
    means = [problems * sds[0] ** 2 + sds[2] ** 2, 3 * sds[1] ** 2 + sds[2] ** 2, sds[2] ** 2]
    needed = Spread(3, problems, 0.0, *means).seeds_needed(0.02)
    assert needed is not None and 5 < needed < 20
    settled = [
        estimate(noisy(needed, problems, 0.0, sds, seed), WIDE).interval(0.9).low > -0.02
        for seed in range(400)
    ]
    assert 0.72 < np.mean(settled) < 0.9


# Comparing arms.


def rows(table_SI: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    return dict(enumerate(table_SI.clip(0, 1)))


BASE = np.tile([0.2, 0.3], 50)
CONTROL = BASE + noisy(5, 100, 0.4, (0.005, 0.05, 0.02))


def arm(difference: float, seed: int = 1, seed_sd: float = 0.004) -> dict[int, NDArray[np.float64]]:
    return rows(CONTROL + noisy(5, 100, difference, (seed_sd, 0.02, 0.01), seed))


def judged(**arms: dict[int, NDArray[np.float64]]) -> dict[str, ArmResult]:
    return compare({"full": rows(CONTROL), **arms}, "full", BASE, 0.02, rng())


def test_every_verdict() -> None:
    found = judged(
        up=arm(0.05), level=arm(0.0), unsure=arm(0.01, seed_sd=0.015), down=arm(-0.1),
        open=arm(-0.02, seed_sd=0.015), gone={},
    )  # fmt: skip
    assert {name: one.verdict for name, one in found.items()} == {
        "full": "control",
        "up": "better",
        "level": "equivalent",
        "unsure": "not worse",
        "down": "worse",
        "open": "undecided",
        "gone": "failed",
    }
    assert found["full"].difference is found["full"].tests is found["gone"].accuracy is None
    assert found["open"].seeds_needed is None or found["open"].seeds_needed > 5
    assert found["level"].seeds_needed is None
    kept = found["down"].retention
    assert kept is not None and kept.high < 1 and kept.mean == pytest.approx(0.75, abs=0.05)


def test_closed_testing_and_the_two_sides() -> None:
    found = judged(up=arm(0.05), level=arm(0.0), down=arm(-0.1))
    for one in found.values():
        if one.tests is None or one.difference is None:
            continue
        tests, limits = one.tests, one.difference
        assert tests["noninferior"].p <= tests["superior"].p
        assert (tests["noninferior"].p <= 0.05) == (limits.low90 > -0.02)
        assert (tests["superior"].p <= 0.05) == (limits.low95 > 0)
        assert (tests["inferior"].p <= 0.05) == (limits.high95 < 0)
        assert (tests["equivalent"].p <= 0.05) == (limits.low90 > -0.02 and limits.high90 < 0.02)


def test_an_arm_can_be_within_the_margin_and_clearly_below() -> None:
    one = judged(less=arm(-0.01))["less"]
    assert one.verdict == "equivalent"
    assert one.tests is not None and one.tests["inferior"].holds


def test_holm_takes_what_one_arm_alone_would_have() -> None:
    # Of a dozen arms, eleven show nothing; the twelfth has p of 1 to 4 %.
    near = arm(-0.004, seed=5, seed_sd=0.008)
    alone = judged(near=near)["near"]
    assert alone.tests is not None and 0.05 / 12 < alone.tests["noninferior"].p < 0.05
    assert alone.verdict == "equivalent"
    others = {f"open{n}": arm(-0.02, seed=40 + n, seed_sd=0.02) for n in range(11)}
    among = judged(near=near, **others)["near"]
    assert among.tests is not None
    assert among.difference == alone.difference
    assert among.tests["noninferior"].p == alone.tests["noninferior"].p
    assert among.tests["noninferior"].holm > 0.05
    assert among.verdict == "undecided"


def test_a_placebo_is_in_no_family() -> None:
    scores = {"full": rows(CONTROL), "a": arm(0.0), "random": rows(np.tile(BASE, (5, 1)))}
    found = compare(scores, "full", BASE, 0.02, rng(), placebos=["random"])
    tests = found["a"].tests
    assert tests is not None and tests["noninferior"].holm == tests["noninferior"].p
    assert found["random"].tests is None and found["random"].difference is not None
    assert found["random"].verdict == "placebo"
    for gain, verdict in ((0.2, "placebo gains"), (-0.15, "placebo loses")):
        scores["random"] = rows(BASE + noisy(5, 100, gain, (0.01, 0.02, 0.02)))
        found = compare(scores, "full", BASE, 0.02, rng(), placebos=["random"])
        assert found["random"].verdict == verdict


def test_only_common_seeds_are_paired() -> None:
    part = {seed: row for seed, row in arm(0.0).items() if seed != 1}
    shifted = {seed + 10: row for seed, row in part.items()}
    found = judged(part=part, shifted=shifted)
    assert set(found["part"].by_seed) == set("0234")
    difference = np.mean([part[s] - rows(CONTROL)[s] for s in part])
    assert found["part"].difference is not None
    assert found["part"].difference.mean == pytest.approx(difference)
    assert found["shifted"].difference is None and found["shifted"].verdict == "undecided"
    assert found["shifted"].accuracy is not None and "no seed" in found["shifted"].retention_note


def test_there_is_nothing_to_match_where_the_control_did_not_learn() -> None:
    flat = BASE + noisy(5, 100, 0.0, (0.005, 0.02, 0.02))
    scores = {"full": rows(flat), "same": rows(flat + 1e-4), "up": rows(flat + CONTROL - BASE)}
    found = compare(scores, "full", BASE, 0.02, rng())
    assert found["same"].verdict == "undecided" and found["same"].seeds_needed is None
    assert found["same"].retention_note == "the control's own gain is not clear"
    assert found["up"].verdict == "better"


def test_an_arms_interval_does_not_depend_on_the_others() -> None:
    many = noisy(7, 40, 0.5, (0.02, 0.1, 0.1))
    control, one, two = (rows(many + rng(n).normal(0, 0.05, many.shape)) for n in range(3))
    base = np.full(40, 0.1)
    both = compare({"c": control, "one": one, "two": two}, "c", base, 0.02, rng(7))
    alone = compare({"c": control, "two": two}, "c", base, 0.02, rng(7))
    assert both["two"].difference == alone["two"].difference
    assert both["two"].difference is not None and both["two"].difference.method == BOOTSTRAP


def test_json_has_the_names_of_the_analysis() -> None:
    found = asdict(judged(level=arm(0.0))["level"])
    assert set(found["difference"]) == {"mean", "low90", "high90", "low95", "high95", "method"}
    assert set(found["tests"]) == {"noninferior", "superior", "equivalent", "inferior"}
    assert set(found["tests"]["superior"]) == {"p", "holm", "holds"}
    assert set(found["retention"]) == {"mean", "low", "high"}
    assert isinstance(found["tests"]["equivalent"]["holds"], bool)


def test_one_problem_is_refused() -> None:
    with pytest.raises(UserError, match="at least two problems, not of 1"):
        arm_interval([[1.0]])


def test_seeds_that_end_below_the_base() -> None:
    base = np.full(40, 0.5)
    rows = {seed: base + gain for seed, gain in enumerate([0.1, 0.1, -0.1, 0.0, 0.1])}
    found = compare({"full": rows}, "full", base, 0.02, np.random.default_rng(0))["full"].below_base
    assert found is not None and found.mean == 0.2
    assert found.high == pytest.approx(0.71642, abs=1e-5)
