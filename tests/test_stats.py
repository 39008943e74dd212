"""modicum.stats: constants worked out by hand, the shared cases, and what is refused."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from cases import load
from modicum.stats import interval, paired_interval, pass_at_k, standard_error
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


def test_interval_is_the_t_interval():
    # Mean .5, standard error .125 * sqrt(2/3): t(.975, 2) = 4.302653.
    found = interval([0.5, 0.375, 0.625])
    half = 4.302653 * 0.125 / 3**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_interval_at_another_level():
    # t(.95, 2) = 2.919986.
    found = interval([0.5, 0.375, 0.625], level=0.9)
    assert found.high - found.mean == pytest.approx(2.919986 * 0.125 / 3**0.5)


def test_interval_is_clipped():
    found = interval([0, 1])
    assert (found.low, found.mean, found.high) == (0, 0.5, 1)


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


def test_paired_interval_takes_out_how_hard_a_problem_is():
    before = np.linspace(0, 0.8, 9)
    gain = np.tile([0.05, 0.1, 0.15], 3)
    found = paired_interval(before + gain, before)
    # sd = sqrt(6 * .05^2 / 8), t(.975, 8) = 2.306004.
    half = 2.306004 * (6 * 0.0025 / 8) ** 0.5 / 3
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1 - half, 0.1 + half))


def test_paired_interval_of_equal_scores_has_width():
    found = paired_interval([1, 0, 1, 0], [1, 0, 1, 0])
    assert found.mean == 0
    assert found.low == pytest.approx(-found.high)
    assert 0 < found.high < 0.5


@pytest.mark.parametrize("after, before", [([1, 0], [1]), ([2, 0], [1, 0]), ([], [])])
def test_paired_interval_refuses(after, before):
    with pytest.raises(UserError):
        paired_interval(after, before)
