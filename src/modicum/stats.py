"""Estimates and their uncertainty: pass@k, maj@k, standard errors, intervals, Holm's p-values.

Problems are the clusters: the samples of a problem are averaged to one score, whose spread has both
the choice of problems and the noise of sampling (Miller 2024, arXiv 2411.00640)."""

import itertools
import math
import operator
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from modicum.types import Frozen, UserError

ROUNDING = 1e-12  # 2/3 - 1/3 and 1 - 2/3 differ by less; scores that differ do so by more.


class Interval(Frozen):
    """A mean and the limits of its confidence interval, all in the unit of the scores."""

    mean: float
    low: float
    high: float


class Difference(Frozen):
    """One mean minus another, with its limits at 90 and at 95 %, and how they were made."""

    mean: float
    low90: float
    high90: float
    low95: float
    high95: float
    method: str = ""


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of `k` samples is right, when `c` of `n` drawn were.
    Unbiased: 1 - C(n-c, k) / C(n, k), as the product of Chen et al. 2021 (arXiv 2107.03374), which
    cannot overflow. Raises UserError when n < k or a count makes no sense."""
    try:
        n, c, k = (operator.index(value) for value in (n, c, k))
    except TypeError:
        raise UserError(f"pass@k needs whole numbers, not n={n!r}, c={c!r}, k={k!r}") from None
    if not 1 <= k <= n:
        raise UserError(f"pass@{k} needs at least {max(k, 1)} samples a problem, there are {n}")
    if not 0 <= c <= n:
        raise UserError(f"pass@k: {c} right answers among {n} samples is impossible")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority_at_k(
    votes: Sequence[str | None], right: str, k: int, key: str = "", draws: int = 200
) -> float:
    """The chance that the commonest vote among `k` samples is `right`; 0 when none votes (None).
    A tie counts as the chance of picking `right` among the tied. For k < n the mean is over all
    subsets, or over `draws` random ones (seeded by `key`). UserError when k is not between 1 and
    n."""
    n = len(votes)
    if not 1 <= k <= n:
        raise UserError(f"maj@{k} needs at least {max(k, 1)} samples a problem, there are {n}")
    if math.comb(len(votes), k) <= draws:
        subsets: Iterable[Sequence[str | None]] = itertools.combinations(votes, k)
    else:
        rng = random.Random(f"{key}/{k}")
        subsets = [rng.sample(votes, k) for _ in range(draws)]

    def share(subset: Sequence[str | None]) -> float:
        counts = Counter(vote for vote in subset if vote is not None)
        most = max(counts.values(), default=0)
        tied = [vote for vote, count in counts.items() if count == most]
        return (right in tied) / len(tied) if tied else 0.0

    return statistics.fmean(map(share, subsets))


def auc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """The chance that a right one scores above a wrong one, ties half; None where all are alike."""
    pairs = list(zip(scores, right, strict=True))
    won = [(one > two) + (one == two) / 2 for one, r in pairs if r for two, s in pairs if not s]
    return statistics.fmean(won) if won else None


def best_of(samples: Sequence[tuple[float, float]], n: int) -> float:
    """The expected value of the highest scored of `n` drawn from (score, value) without replacement.
    Equal scores share their mean value. Raises UserError unless 1 <= n <= the number of scores."""
    count = len(samples)
    if not 1 <= n <= count:
        raise UserError(f"best of {n} needs at least {max(n, 1)} samples a problem, not {count}")
    means = {s: statistics.fmean(v for t, v in samples if t == s) for s, _ in samples}
    ways = [math.comb(count - rank, n - 1) for rank in range(1, count + 1)]
    ranked = sorted((score for score, _ in samples), reverse=True)
    return sum(means[s] * way for s, way in zip(ranked, ways, strict=True)) / sum(ways)


def best_of_kl(n: int) -> float:
    """The KL of the best of `n` from one of them, in nats: ln n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def standard_error(scores: ArrayLike) -> float:
    """The standard error of the mean of `scores`: sd (with n - 1) over the root of n.
    UserError for fewer than two, more than one axis, or a score that is not finite."""
    if len(values := _vector("scores", scores)) < 2:
        raise UserError("a standard error needs at least two scores, there is one")
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def interval(scores: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of scores in [0, 1], one a problem, and its interval over problems.
    Scores of 0 and 1 alone have Wilson's interval (1927); shares between them have it for as many
    problems as their spread is worth (`_wilson`). UserError for none, or one outside [0, 1]."""
    if (values := _vector("scores", scores)).min() < 0 or values.max() > 1:
        raise UserError(f"scores lie in [0, 1], not {values.min():g} to {values.max():g}")
    return _wilson(values, _quantile(level), UNSEEN)


def paired_interval(after: ArrayLike, before: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of `after - before` over the same problems and its interval, within [-1, 1].
    Both have one score in [0, 1] a problem, in the same order; pairing takes out how hard
    a problem is. Raises UserError when the lengths differ or a score lies outside [0, 1]."""
    return change_interval(_changes(after, before), level)


def change_interval(changes: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of changes in [-1, 1], one a problem, and its interval.
    Gains and losses each have an interval as in `interval`; that of the change is put
    together from them and their correlation (Newcombe 1998; Zou and Donner 2008)."""
    change, z = _vector("changes", changes), _quantile(level)
    gain, loss = np.maximum(change, 0.0), np.maximum(-change, 0.0)
    up, down = _wilson(gain, z, UNSEEN_CHANGES), _wilson(loss, z, UNSEEN_CHANGES)
    spread = float(gain.std() * loss.std())
    together = -up.mean * down.mean / spread if spread > 0 else 0.0

    def far(one: float, two: float) -> float:
        return math.sqrt(max(0.0, one * one + two * two - 2 * together * one * two))

    mean = float(change.mean())
    low = mean - far(up.mean - up.low, down.high - down.mean)
    high = mean + far(up.high - up.mean, down.mean - down.low)
    return Interval(mean, max(-1.0, low), min(1.0, high))


def mean_interval(after: ArrayLike, before: ArrayLike, level: float = 0.95) -> Interval:
    """The mean of `after - before`, pairs of means themselves (over seeds), and its t-interval.
    Clipped to [-1, 1]; of equal differences that of `no_spread`. UserError as `paired_interval`."""
    change, bounds = _changes(after, before), (-1.0, 1.0)
    if np.ptp(change) < ROUNDING:
        return no_spread(float(change[0]), len(change), level, bounds)
    mean = float(change.mean())
    half = float(special.stdtrit(len(change) - 1, (1 + level) / 2)) * standard_error(change)
    return Interval(mean, max(-1.0, mean - half), min(1.0, mean + half))


# What counts against a narrow spread, in problems answered always or never (docs/evaluation.md).
UNSEEN, UNSEEN_CHANGES = 2.0, 0.5


def _wilson(values: NDArray[np.float64], z: float, unseen: float) -> Interval:
    """Wilson's interval of a mean of n values in [0, 1], for n / r problems.
    r is their variance over p (1 - p), taken for 1 in `unseen` more successes than there are."""
    count, mean = len(values), float(values.mean())
    most = mean * (1 - mean)
    seen = count * min(mean, 1 - mean)
    ratio = min(1.0, float(values.var()) / most) if most > 0 else 1.0
    weight = z * z * (seen * ratio + unseen) / (seen + unseen) / count
    middle = (mean + weight / 2) / (1 + weight)
    half = math.sqrt(weight * most + weight * weight / 4) / (1 + weight)
    # At 0 and 1 the limit is the mean itself; rounding must not put it beside.
    low = 0.0 if mean == 0 else max(0.0, middle - half)
    return Interval(mean, low, 1.0 if mean == 1 else min(1.0, middle + half))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise UserError(f"the level of an interval lies between 0 and 1, not at {level!r}")
    return float(special.ndtri((1 + level) / 2))


def _changes(after: ArrayLike, before: ArrayLike) -> NDArray[np.float64]:
    """after - before; differences that are rounding are 0."""
    pair = [_vector(name, values) for name, values in (("after", after), ("before", before))]
    if len(pair[0]) != len(pair[1]):
        raise UserError(f"pairs need equally many scores, not {len(pair[0])} and {len(pair[1])}")
    if min(v.min() for v in pair) < 0 or max(v.max() for v in pair) > 1:
        raise UserError("paired scores lie in [0, 1]")
    change = pair[0] - pair[1]
    return np.where(np.abs(change) < ROUNDING, 0.0, change)


def no_spread(mean: float, count: int, level: float, bounds: tuple[float, float]) -> Interval:
    """Wilson's interval where all `count` values are equal to `mean`.
    His upper limit for 0 of n, z^2 / (n + z^2), bounds the share of problems that behave
    otherwise, and those may lie anywhere within the bounds."""
    least, most = bounds
    z = _quantile(level)
    unseen = z * z / (count + z * z)
    return Interval(mean, mean - unseen * (mean - least), mean + unseen * (most - mean))


def share_interval(count: int, of: int, level: float = 0.95) -> Interval:
    """The share `count` of `of` and its exact interval (Clopper and Pearson 1934)."""
    if not 0 <= count <= of or not of:
        raise UserError(f"{count} of {of} is no share")
    tail = (1 - level) / 2
    low = float(special.betaincinv(count, of - count + 1, tail)) if count else 0.0
    high = float(special.betaincinv(count + 1, of - count, 1 - tail)) if count < of else 1.0
    return Interval(count / of, low, high)


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject those at most alpha.
    The j-th smallest of m becomes the largest of min(1, (m - i + 1) p_(i)) over i <= j, which holds
    the chance of any false rejection to alpha under every dependence (Holm 1979). Raises UserError
    when one is not between 0 and 1."""
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
