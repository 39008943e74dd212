"""modicum.stats: constants worked out by hand, the shared cases, and what is refused."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest

from cases import load
from modicum.stats import (
    interval,
    mean_interval,
    paired_interval,
    pass_at_k,
    share_interval,
    standard_error,
)
from modicum.types import UserError


@pytest.mark.parametrize("case", load("pass_at_k"), ids=str)
def test_pass_at_k_case(case):
    if case["expected"] == "error":
        with pytest.raises(UserError):
            pass_at_k(**case["input"])
    else:
        assert pass_at_k(**case["input"]) == pytest.approx(case["expected"], abs=case["tol"])


@pytest.mark.parametrize("case", load("stderr"), ids=str)
def test_standard_error_case(case):
    if case["expected"] == "error":
        with pytest.raises(UserError):
            standard_error(case["input"]["scores"])
    else:
        found = standard_error(case["input"]["scores"])
        assert found == pytest.approx(case["expected"], abs=case["tol"])


def test_pass_at_k_equals_the_binomial_form():
    for n in range(1, 9):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k))


def test_pass_at_k_takes_numpy_counts_and_large_ones():
    assert pass_at_k(np.int64(10), np.int64(3), np.int64(1)) == pytest.approx(0.3)
    assert 0 < pass_at_k(100_000, 1, 1000) == pytest.approx(0.01)


@pytest.mark.parametrize("n, c, k", [(1, 1, 10), (4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1.5, 1)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(UserError, match="pass@"):
        pass_at_k(n, c, k)


def test_standard_error_by_hand():
    # Deviations from .5 are all .5: sd = sqrt(4 * .25 / 3), over sqrt(4).
    assert standard_error([0, 1, 0, 1]) == pytest.approx((1 / 3) ** 0.5 / 2)


@pytest.mark.parametrize("scores", [[], [1.0], [[0, 1], [1, 0]], [0.0, float("nan")], ["a", "b"]])
def test_standard_error_refuses(scores):
    with pytest.raises(UserError):
        standard_error(scores)


@pytest.mark.parametrize(
    "right, count, low, high",
    [(1, 30, 0.0059, 0.1667), (0, 30, 0, 0.1135), (30, 30, 0.8865, 1), (29, 30, 0.8333, 0.9941),
     (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)  # fmt: skip
def test_one_sample_a_problem_has_wilsons_interval(right, count, low, high):
    """Textbook values; the last is Newcombe's (1998)."""
    found = interval([1.0] * right + [0.0] * (count - right))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_interval_of_shares_is_wilsons_for_more_problems():
    # Variance 1/96 over .25 is r = 1/24; S = 1.5: r = (1.5 / 24 + 2) / 3.5 = .589286, and
    # w = z^2 r / 3 = .754573. Half: sqrt(w / 4 + w^2 / 4) / (1 + w).
    found = interval([0.5, 0.375, 0.625])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.172105, 0.827895))
    # z = 1.644854 at 90 %.
    assert interval([0.5, 0.375, 0.625], level=0.9).high == pytest.approx(0.794543)


def test_no_limit_falls_when_a_success_is_added():
    rng = np.random.default_rng(0)
    for count, samples in itertools.product((3, 8, 30), (1, 4, 16)):
        counts = np.zeros(count)
        before = interval(counts)
        while counts.min() < samples:
            open_ones = np.flatnonzero(counts < samples)
            # Now one after the other, now spread, so that r rises and falls.
            counts[open_ones[0] if rng.random() < 0.5 else rng.choice(open_ones)] += 1
            after = interval(counts / samples)
            assert after.low >= before.low - 1e-12 and after.high >= before.high - 1e-12
            assert 0 <= after.low < after.mean + 1e-12 and after.mean - 1e-12 < after.high <= 1
            before = after
        assert before.high == 1


@pytest.mark.parametrize(
    "count, samples, chance, alike",
    [(30, 1, 0.1, 0), (64, 1, 0.047, 0), (256, 1, 0.019, 0), (30, 4, 0.1, 0.5),
     (64, 4, 0.047, 0.05), (256, 4, 0.019, 2), (64, 16, 0.05, 0.5), (16, 4, 0.5, 2)],
)  # fmt: skip
def test_intervals_of_rare_successes_hold_the_truth(count, samples, chance, alike):
    """2,000 evaluations each; the t-interval holds it in 81 to 91 % of all but the last."""
    rng = np.random.default_rng(1)
    chances = np.full((2000, count), chance)
    if alike:
        chances = rng.beta(chance * alike, (1 - chance) * alike, size=(2000, count))
    found = [interval(scores) for scores in rng.binomial(samples, chances) / samples]
    assert np.mean([one.low <= chance <= one.high for one in found]) > 0.935


def test_interval_without_spread_is_wilsons():
    # Wilson for 0 of 10: z^2 / (10 + z^2) with z = 1.959964.
    none, every = interval([0.0] * 10), interval([1.0] * 10)
    assert (none.mean, none.low, none.high) == pytest.approx((0, 0, 0.277533), abs=1e-6)
    assert (every.mean, every.low, every.high) == pytest.approx((1, 0.722467, 1), abs=1e-6)


def test_interval_of_one_problem_is_wide():
    found = interval([0.5])
    assert found.low < 0.11 and found.high > 0.89


@pytest.mark.parametrize(
    "scores, level", [([], 0.95), ([0.5, 1.2], 0.95), ([-0.1, 0.5], 0.95), ([0, 1], 95)]
)
def test_interval_refuses(scores, level):
    with pytest.raises(UserError):
        interval(scores, level)


def test_paired_interval_by_hand():
    # Newcombe (1998, II), 50 pairs, 12 better and 2 worse: .0569 to .3404 by his method 10.
    # Wilson: .1430 to .3741 and .0110 to .1346; correlation -.11471.
    found = paired_interval([1] * 12 + [0] * 2 + [1] * 36, [0] * 12 + [1] * 2 + [1] * 36)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.0570, 0.3404), abs=2e-4)


def test_paired_interval_takes_out_how_hard_a_problem_is():
    before = np.linspace(0, 0.75, 256)
    gain = np.tile([0.05, 0.1, 0.15, 0.2], 64)
    found = paired_interval(before + gain, before)
    assert found.mean == pytest.approx(0.125)
    assert found.low > 0.10 and found.high < 0.15  # apart, interval() gives +-.03 to each


def test_paired_interval_of_one_change_is_not_below_that_of_none():
    none, one = paired_interval([0] * 64, [0] * 64), paired_interval([1, *[0] * 63], [0] * 64)
    assert (none.low, none.high) == pytest.approx((-0.056624, 0.056624), abs=1e-6)
    assert one.high > none.high and one.low > none.low


def test_mean_interval_is_the_t_interval():
    # Differences .1, .2, .3: sd .1, over sqrt(3); t(.975, 2) = 4.302653.
    found = mean_interval([0.3, 0.5, 0.7], [0.2, 0.3, 0.4])
    half = 4.302653 * 0.1 / 3**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))


def test_paired_interval_of_equal_scores_has_width():
    found = paired_interval([1, 0, 1, 0], [1, 0, 1, 0])
    assert found.mean == 0
    assert found.low == pytest.approx(-found.high)
    assert 0 < found.high < 0.5


@pytest.mark.parametrize("after, before", [([1, 0], [1]), ([2, 0], [1, 0]), ([], [])])
def test_paired_interval_refuses(after, before):
    with pytest.raises(UserError):
        paired_interval(after, before)


def test_the_exact_interval_of_a_share() -> None:
    """Clopper and Pearson: 0 of n ends at 1 - 0.025^(1/n)."""
    found = share_interval(0, 5)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, pytest.approx(0.5218, abs=1e-4))
    found = share_interval(1, 5)
    assert (found.low, found.high) == (
        pytest.approx(0.00505, abs=1e-5),
        pytest.approx(0.71642, abs=1e-5),
    )
    assert share_interval(5, 5).low == pytest.approx(0.4782, abs=1e-4)
    with pytest.raises(UserError):
        share_interval(0, 0)
