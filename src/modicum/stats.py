"""Estimates and their uncertainty: pass@k, maj@k, standard errors, intervals, Holm's p-values.

Problems are the clusters: several samples of one problem are first averaged to one score
per problem, and the spread of those scores carries both the choice of problems and the
noise of sampling (Miller 2024, arXiv 2411.00640). What is random is seeded.
"""

from __future__ import annotations

import itertools
import math
import operator
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from modicum.types import UserError

ROUNDING = 1e-12  # 2/3 - 1/3 and 1 - 2/3 differ by less; scores that differ do so by more.


@dataclass(frozen=True)
class Interval:
    """A mean and the limits of its confidence interval, all in the unit of the scores."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One mean minus another, with its limits at 90 and at 95 %, and how they were made."""

    mean: float
    low90: float
    high90: float
    low95: float
    high95: float
    method: str = ""


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of `k` samples is right, when `c` of `n` drawn were.

    Unbiased: 1 - C(n-c, k) / C(n, k), as the product of Chen et al. 2021 (arXiv
    2107.03374), which cannot overflow. Raises UserError when n < k or a count makes no sense.
    """
    try:
        n, c, k = (operator.index(value) for value in (n, c, k))
    except TypeError:
        raise UserError(f"pass@k needs whole numbers, not n={n!r}, c={c!r}, k={k!r}") from None
    if k < 1:
        raise UserError(f"pass@k needs k of at least 1, not {k}")
    if n < k:
        raise UserError(f"pass@{k} needs at least {k} samples a problem, there are {n}")
    if not 0 <= c <= n:
        raise UserError(f"pass@k: {c} right answers among {n} samples is impossible")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority_at_k(
    votes: Sequence[str | None], right: str, k: int, key: str = "", draws: int = 200
) -> float:
    """The chance that the commonest vote among `k` samples is `right`; 0 when none votes.

    None is no vote. A tie counts as the chance of picking `right` among the tied. For
    k < n the mean is over all subsets of k samples, or over `draws` random ones (seeded by
    `key`) when there are more. Raises UserError when k is not between 1 and n.
    """
    if not 1 <= k <= len(votes):
        raise UserError(
            f"maj@{k} needs at least {max(k, 1)} samples a problem, there are {len(votes)}"
        )
    if math.comb(len(votes), k) <= draws:
        subsets: Iterable[Sequence[str | None]] = itertools.combinations(votes, k)
    else:
        rng = random.Random(f"{key}/{k}")
        subsets = [rng.sample(votes, k) for _ in range(draws)]
    return statistics.fmean(_majority(subset, right) for subset in subsets)


def _majority(votes: Sequence[str | None], right: str) -> float:
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    tied = [vote for vote, count in counts.items() if count == most]
    return (right in tied) / len(tied) if tied else 0.0


def standard_error(scores: ArrayLike) -> float:
    """The standard error of the mean of `scores`: sd (with n - 1) over the root of n.

    Raises UserError for fewer than two scores, more than one axis, or a score that is
    not finite.
    """
    values = _vector("scores", scores)
    if len(values) < 2:
        raise UserError("a standard error needs at least two scores, there is one")
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def interval(scores: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of per-problem scores in [0, 1] and its t-interval over problems.

    `scores` has one entry a problem (the mean over its samples). The limits are clipped
    to [0, 1]. When all problems score 0, or all 1, the t-interval has no width and
    Wilson's is given. Raises UserError for no scores or scores outside [0, 1].
    """
    values = _vector("scores", scores)
    if values.min() < 0 or values.max() > 1:
        raise UserError(f"scores lie in [0, 1], not {values.min():g} to {values.max():g}")
    return _interval(values, level, (0.0, 1.0))


def paired_interval(after: ArrayLike, before: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of `after - before` over the same problems and its t-interval.

    Both have one score in [0, 1] a problem, in the same order; pairing takes out how hard
    a problem is. The limits are clipped to [-1, 1]. Raises UserError when the lengths
    differ or a score lies outside [0, 1].
    """
    pair = [_vector(name, values) for name, values in (("after", after), ("before", before))]
    if len(pair[0]) != len(pair[1]):
        raise UserError(f"pairs need equally many scores, not {len(pair[0])} and {len(pair[1])}")
    if min(v.min() for v in pair) < 0 or max(v.max() for v in pair) > 1:
        raise UserError("paired scores lie in [0, 1]")
    return _interval(pair[0] - pair[1], level, (-1.0, 1.0))


def _interval(values: NDArray[np.float64], level: float, bounds: tuple[float, float]) -> Interval:
    if not 0 < level < 1:
        raise UserError(f"the level of an interval lies between 0 and 1, not at {level!r}")
    count, (least, most) = len(values), bounds
    if np.ptp(values) < ROUNDING:
        return no_spread(float(values[0]), count, level, bounds)
    mean = float(values.mean())
    half = float(special.stdtrit(count - 1, (1 + level) / 2)) * standard_error(values)
    return Interval(mean, max(least, mean - half), min(most, mean + half))


def no_spread(mean: float, count: int, level: float, bounds: tuple[float, float]) -> Interval:
    """Wilson's interval where all `count` values are equal to `mean`.

    That no spread was seen does not say that there is none. Wilson's upper limit for 0 of
    n, z^2 / (n + z^2), bounds the share of problems that behave otherwise, and those may
    lie anywhere within the bounds. At 0 and at 1 this is Wilson's interval exactly.
    """
    least, most = bounds
    z = float(special.ndtri((1 + level) / 2))
    unseen = z * z / (count + z * z)
    return Interval(mean, mean - unseen * (mean - least), mean + unseen * (most - mean))


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject those at most alpha.

    The j-th smallest of m becomes the largest of min(1, (m - i + 1) p_(i)) over i <= j,
    which holds the chance of any false rejection to alpha under every dependence (Holm
    1979). Raises UserError when one is not between 0 and 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise UserError("p-values must be a list of numbers between 0 and 1")
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(value) for value in adjusted]


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be a list of numbers") from None
    if vector.ndim != 1:
        raise UserError(f"{name} must have one axis (problems), not {vector.ndim}")
    if not len(vector):
        raise UserError(f"{name} is empty: there is nothing to estimate")
    if not np.isfinite(vector).all():
        raise UserError(f"{name} holds a value that is not a finite number")
    return vector
