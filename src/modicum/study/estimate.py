"""The mean of a table of scores, seeds x problems, with its intervals, and p-values that agree.

Two-way random effects (Searle, Casella and McCulloch 1992, ch. 4): docs/statistics.md. A t-interval,
whose half-width h is a MOVER interval (Zou and Donner 2008):

    h^2 = t(S-1)^2 MS_seeds / (S I)  +  t(I-1)^2 max(0, MS_problems - MS_rest) / (S I)

a hierarchical bootstrap of pivots (T* = (mean* - mean) / standard error*), or an interval over problems.

    R resample, S seed, I problem"""

import math
from collections.abc import Callable
from dataclasses import astuple, field

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from scipy import special

from modicum.results import Column, Variance
from modicum.stats import ROUNDING, Difference, Interval, change_interval, interval, no_spread
from modicum.types import Frozen, UserError

Table = NDArray[np.float64]
POWER, MOST = 0.8, 100  # of `seeds_needed`
RESAMPLES, BLOCK = 9_999, 200  # worked on at once: all of it stays in the cache
LEVEL, MAX_STEPS = 0.95, 40  # of the retained share; doublings of a distance: 2^40 is no ratio
MAX_T_SEEDS = 5
ONE_SEED = "interval over problems of one seed"
T_INTERVAL = "t-interval over seeds and problems"
BOOTSTRAP = "hierarchical bootstrap"
NO_SPREAD = "Wilson interval, as all scores are equal"


class Spread(Frozen):
    """The mean of a table and its mean squares; with one seed only `problems` is not 0."""

    num_seeds: int
    num_problems: int
    mean: float
    seeds: float
    problems: float
    residual: float

    @property
    def none(self) -> bool:
        """Whether all scores of the table are equal."""
        return self.seeds == self.problems == self.residual == 0

    @property
    def parts(self) -> tuple[float, float]:
        """The variance of the mean in its two parts: that seen over seeds, and problems' own."""
        cells = self.num_seeds * self.num_problems
        return self.seeds / cells, max(0.0, self.problems - self.residual) / cells

    @property
    def standard_error(self) -> float:
        """Of the mean, over seeds and problems."""
        return math.sqrt(sum(self.parts))

    @property
    def components(self) -> Variance | None:
        """The moment estimates of the three variances, negative ones 0; None for a single seed."""
        if self.num_seeds == 1:
            return None
        seed = max(0.0, self.seeds - self.residual) / self.num_problems
        problem = max(0.0, self.problems - self.residual) / self.num_seeds
        return Variance(seed, problem, self.residual)

    def half_width(self, level: float) -> float:
        """Half the width of the two-sided interval at `level`."""
        return half_width(self.num_seeds, self.num_problems, (1 + level) / 2, self.parts)

    def seeds_needed(self, margin: float, alpha: float = 0.05) -> int | None:
        """The smallest number of seeds above those there are that settles an arm with a chance of 80 %.

        `alpha` is one-sided. None: `MOST` are not enough, as more do not shrink B/I; or one seed."""
        problems, variances = self.num_problems, self.components
        if variances is None or self.none:
            return None
        for seeds in range(self.num_seeds + 1, MOST + 1):
            seen = variances.seed / seeds + variances.residual / (seeds * problems)
            power, not_worse, worse = (
                half_width(seeds, problems, probability, (seen, variances.problem / problems))
                for probability in (POWER, 1 - alpha, 0.975)
            )
            if self.mean + margin >= not_worse + power or -self.mean >= worse + power:
                return seeds
        return None


def half_width(
    num_seeds: int, num_problems: int, probability: float, parts: tuple[float, float]
) -> float:
    """The h of this module's docstring, at a one-sided `probability`; see `Spread.parts`."""
    seeds = float(special.stdtrit(num_seeds - 1, probability)) if num_seeds > 1 else 0.0
    problems = float(special.stdtrit(num_problems - 1, probability))
    return math.sqrt(seeds**2 * parts[0] + problems**2 * parts[1])


def spread(table_SI: Table) -> Spread:
    """The mean and the mean squares of a table."""
    num_seeds, num_problems = table_SI.shape
    mean = float(table_SI.mean())
    if np.ptp(table_SI) < ROUNDING:
        return Spread(num_seeds, num_problems, float(table_SI[0, 0]), 0.0, 0.0, 0.0)
    centred_SI = table_SI - mean
    rows_S, columns_I = centred_SI.mean(1), centred_SI.mean(0)
    problems = num_seeds * float(columns_I @ columns_I) / (num_problems - 1)
    if num_seeds == 1:
        return Spread(1, num_problems, mean, 0.0, problems, 0.0)
    seeds = num_problems * float(rows_S @ rows_S) / (num_seeds - 1)
    rest_SI = centred_SI - rows_S[:, None] - columns_I
    residual = float((rest_SI * rest_SI).sum()) / ((num_seeds - 1) * (num_problems - 1))
    return Spread(num_seeds, num_problems, mean, seeds, problems, residual)


def table(scores: ArrayLike) -> Table:
    """Scores as seeds x problems; one row may come flat. UserError for fewer than two problems."""
    if (table_SI := np.atleast_2d(np.asarray(scores, dtype=np.float64))).shape[1] < 2:
        raise UserError(f"scores must be of at least two problems, not of {table_SI.shape[1]}")
    return table_SI


class Estimate(Frozen):
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
        several = T_INTERVAL if self.pivots_R is None else BOOTSTRAP
        return ONE_SEED if self.spread.num_seeds == 1 else several

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

    @property
    def difference(self) -> Difference:
        """The limits of an estimate of a difference."""
        narrow, wide = self.interval(0.90), self.interval(0.95)
        return Difference(self.mean, narrow.low, narrow.high, wide.low, wide.high, self.method)

    def p_at_most(self, value: float) -> float:
        """The p-value of the hypothesis that the true mean is `value` or less."""
        return 1 - self._p(value) if value > self.mean else self._p(value)

    def p_at_least(self, value: float) -> float:
        """The p-value of the hypothesis that the true mean is `value` or more."""
        return 1 - self._p(value) if value < self.mean else self._p(value)

    def _p(self, value: float) -> float:
        """The one-sided p at which a limit of the interval meets a value, by bisection."""

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
    table_SI: Table, bounds: tuple[float, float], rng: Generator | None = None, alone: bool = False
) -> Estimate:
    """The estimate of a mean; with `rng` and six seeds or more, bootstrapped.

    `alone`: of an arm by itself or against the base, never narrower than over problems."""
    found = spread(table_SI)
    problems_I = table_SI.mean(0) if alone or found.num_seeds == 1 else None
    if rng is None or found.none or found.num_seeds <= MAX_T_SEEDS:
        return Estimate(found, bounds, problems_I=problems_I)
    return Estimate(found, bounds, pivots(table_SI, rng), problems_I)


def pivots(table_SI: Table, rng: Generator, resamples: int = RESAMPLES) -> Column:
    """The pivots of `resamples` tables that have spread, sorted.

    A resample is counts over seeds and over problems: all of them are three matrix products."""
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


def counts(rng: Generator, rows: int, size: int) -> Column:
    """How often each of `size` things was drawn in `size` draws, for each row."""
    drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def retention(arm_SI: Table, control_SI: Table, base_I: Table) -> Interval | str:
    """(arm - base) / (control - base), paired, with its 95 % interval (Fieller 1954), or why none.

    It holds every r for which that of (arm - base) - r (control - base) holds 0, and has two ends
    exactly when the control's own gain is clear."""
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

        A mean square is quadratic in what it is of, so the cross term is known from the three."""
        squares = (
            max(0.0, (1 - value) * a + value * d + (value * value - value) * c)
            for a, c, d in zip(*(astuple(it)[-3:] for it in (arm, control, both)), strict=True)
        )
        mean = arm.mean - value * control.mean
        return abs(mean) - Spread(arm.num_seeds, arm.num_problems, mean, *squares).half_width(LEVEL)

    low, high = _end(excess, ratio, -1.0), _end(excess, ratio, 1.0)
    if low is None or high is None:
        return "the control's own gain is not clear"
    return Interval(ratio, low, high)


def _end(excess: Callable[[float], float], ratio: float, sign: float) -> float | None:
    """Where `excess` first becomes positive from `ratio` on; None where it does not."""
    inside, step = ratio, 0.01
    for _ in range(MAX_STEPS):
        if excess(outside := ratio + sign * step) > 0:
            for _ in range(20):  # bisection to a millionth of the bracket
                middle = (inside + outside) / 2
                inside, outside = (inside, middle) if excess(middle) > 0 else (middle, outside)
            return outside
        inside, step = outside, 2 * step
    return None
