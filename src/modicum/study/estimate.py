"""The mean of a table of scores with its intervals at every level, and p-values that agree.

A t-interval (`twolevel`), a hierarchical bootstrap of pivots (T* = (mean* - mean) / standard
error*), or an interval over problems: docs/statistics.md says which when, and why. A p-value is
the level at which the limit meets the value that is tested.

    R resample, S seed, I problem
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass, field

import numpy as np

from modicum.results import Column
from modicum.stats import Difference, Interval, change_interval, interval, no_spread
from modicum.study.twolevel import Spread, Table, spread

RESAMPLES = 9_999
BLOCK = 200  # Resamples worked on at once, so that all of it stays in the cache.
LEVEL = 0.95  # of the retained share
MAX_STEPS = 40  # Doublings of the distance from the estimate; 2^40 is no ratio.
MAX_T_SEEDS = 5
ONE_SEED = "interval over problems of one seed"
T_INTERVAL = "t-interval over seeds and problems"
BOOTSTRAP = "hierarchical bootstrap"
NO_SPREAD = "Wilson interval, as all scores are equal"


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty; `bounds` are the least and the greatest possible mean."""

    spread: Spread
    bounds: tuple[float, float]
    # Of the bootstrap, sorted; and means of problems, where the interval over them has a say.
    pivots_R: Column | None = field(default=None, repr=False, compare=False)
    problems_I: Column | None = field(default=None, repr=False, compare=False)

    @property
    def mean(self) -> float:
        """Over seeds and problems."""
        return self.spread.mean

    @property
    def method(self) -> str:
        """Of the interval, in words."""
        if self.spread.none:
            return NO_SPREAD
        if self.spread.num_seeds == 1:
            return ONE_SEED
        return T_INTERVAL if self.pivots_R is None else BOOTSTRAP

    def interval(self, level: float) -> Interval:
        """The two-sided interval at `level`, within the bounds."""
        mean, (least, most) = self.mean, self.bounds
        if self.spread.none:
            return no_spread(mean, self.spread.num_problems, level, self.bounds)
        over = None
        if self.problems_I is not None:
            over = (interval if least == 0 else change_interval)(self.problems_I, level)
            if self.spread.num_seeds == 1:
                return over
        down = up = self.spread.half_width(level)
        if self.pivots_R is not None:
            low, high = np.quantile(self.pivots_R, [(1 - level) / 2, (1 + level) / 2])
            down = max(down, float(high) * self.spread.standard_error)
            up = max(up, -float(low) * self.spread.standard_error)
        low, high = max(least, mean - down), min(most, mean + up)
        if over is not None:
            low, high = min(low, over.low), max(high, over.high)
        return Interval(mean, low, high)

    def p_at_most(self, value: float) -> float:
        """The p-value of the hypothesis that the true mean is `value` or less."""
        return 1 - self._p(value) if value > self.mean else self._p(value)

    def p_at_least(self, value: float) -> float:
        """The p-value of the hypothesis that the true mean is `value` or more."""
        return 1 - self._p(value) if value < self.mean else self._p(value)

    def _p(self, value: float) -> float:
        """The one-sided p at which the interval comes to hold a value, by bisection."""

        def clear(level: float) -> bool:
            found = self.interval(level)
            return not found.low <= value <= found.high

        resamples = 1e9 if self.pivots_R is None else len(self.pivots_R) + 1
        least, most = 1 / resamples, 0.5
        if clear(1 - 2 * least):
            return least
        for _ in range(40):
            middle = (least + most) / 2
            least, most = (least, middle) if clear(1 - 2 * middle) else (middle, most)
        return most


def estimate(
    table_SI: Table,
    bounds: tuple[float, float],
    rng: np.random.Generator | None = None,
    alone: bool = False,
) -> Estimate:
    """The estimate of a mean; with `rng` and six seeds or more, bootstrapped.

    `alone`: of an arm by itself or against the base, never narrower than over problems.
    """
    found = spread(table_SI)
    problems_I = table_SI.mean(0) if alone or found.num_seeds == 1 else None
    if rng is None or found.none or found.num_seeds <= MAX_T_SEEDS:
        return Estimate(found, bounds, problems_I=problems_I)
    return Estimate(found, bounds, pivots(table_SI, rng), problems_I)


def difference(found: Estimate) -> Difference:
    """The limits of an estimate of a difference."""
    narrow, wide = found.interval(0.90), found.interval(0.95)
    return Difference(found.mean, narrow.low, narrow.high, wide.low, wide.high, found.method)


def pivots(table_SI: Table, rng: np.random.Generator, resamples: int = RESAMPLES) -> Column:
    """The pivots of `resamples` tables that have spread, sorted.

    A resample is counts over seeds and over problems: all of them are three matrix products.
    """
    centred_SI, (num_seeds, num_problems) = table_SI - table_SI.mean(), table_SI.shape
    cells, degrees, found = table_SI.size, (num_seeds - 1) * (num_problems - 1), []
    for start in range(0, resamples, BLOCK):
        count = min(BLOCK, resamples - start)
        seeds_RS = counts(rng, count, num_seeds)
        problems_RI = counts(rng, count, num_problems)
        rows_RS = problems_RI @ centred_SI.T / num_problems
        columns_RI = seeds_RS @ centred_SI / num_seeds
        mean_R = (seeds_RS * rows_RS).sum(1) / num_seeds
        # Sums of squares around the mean of the resample; the whole one splits into three.
        whole_R = ((seeds_RS @ centred_SI**2) * problems_RI).sum(1) - cells * mean_R**2
        seeds_R = num_problems * (seeds_RS * rows_RS**2).sum(1) - cells * mean_R**2
        problems_R = num_seeds * (problems_RI * columns_RI**2).sum(1) - cells * mean_R**2
        residual_R = np.maximum(whole_R - seeds_R - problems_R, 0) / degrees
        own_R = np.maximum(problems_R / (num_problems - 1) - residual_R, 0)
        variance_R = (np.maximum(seeds_R, 0) / (num_seeds - 1) + own_R) / cells
        # Rounding leaves a resample without spread at about 1e-17 of the scores' square.
        seen_R = variance_R > 1e-15
        found.append(mean_R[seen_R] / np.sqrt(variance_R[seen_R]))
    return np.sort(np.concatenate(found))


def counts(rng: np.random.Generator, rows: int, size: int) -> Column:
    """How often each of `size` things was drawn in `size` draws, for each row."""
    drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def retention(arm_SI: Table, control_SI: Table, base_I: Table) -> Interval | str:
    """(arm - base) / (control - base), paired, with its 95 % interval (Fieller 1954), or why none.

    It holds every r for which that of (arm - base) - r (control - base) holds 0, and has two ends
    exactly when the control's own gain is clear.
    """
    arm, control = spread(arm_SI - base_I), spread(control_SI - base_I)
    both = spread(arm_SI - control_SI)
    if control.none or abs(control.mean) <= control.half_width(LEVEL):
        return "the control's own gain is not clear"
    if control.mean < 0:
        return "the control lost accuracy"
    ratio = arm.mean / control.mean
    if both.none:
        # Equal up to a constant: how sure that is says Wilson's interval, not the ratio.
        seen = no_spread(both.mean, both.num_problems, LEVEL, (-1.0, 1.0))
        return Interval(ratio, 1 + seen.low / control.mean, 1 + seen.high / control.mean)

    def excess(value: float) -> float:
        """Above 0 where the interval of (arm - base) - value (control - base) lies beside 0.

        A mean square is quadratic in what it is of, so the cross term is known from the three.
        """
        squares = (
            max(0.0, (1 - value) * a + value * d + (value * value - value) * c)
            for a, c, d in zip(*(astuple(it)[-3:] for it in (arm, control, both)), strict=True)
        )
        mean = arm.mean - value * control.mean
        found = Spread(arm.num_seeds, arm.num_problems, mean, *squares)
        return abs(mean) - found.half_width(LEVEL)

    low, high = _end(excess, ratio, -1.0), _end(excess, ratio, 1.0)
    if low is None or high is None:
        return "the control's own gain is not clear"
    return Interval(ratio, low, high)


def _end(excess: Callable[[float], float], ratio: float, sign: float) -> float | None:
    """Where `excess` first becomes positive from `ratio` on; None where it does not."""
    inside, step = ratio, 0.01
    for _ in range(MAX_STEPS):
        outside = ratio + sign * step
        if excess(outside) > 0:
            for _ in range(20):  # bisection to a millionth of the bracket
                middle = (inside + outside) / 2
                inside, outside = (inside, middle) if excess(middle) > 0 else (middle, outside)
            return outside
        inside, step = outside, 2 * step
    return None
