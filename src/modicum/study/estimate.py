"""The mean of a table of scores with its intervals at every level, and p-values that agree.

Up to five seeds the interval is the t-interval of `twolevel`. With more it is that of the
hierarchical bootstrap, and never narrower than the t-interval: with six to ten seeds the
bootstrap alone is a little too narrow (docs/statistics.md). One seed has the interval over
problems of an evaluation (`stats.interval`, `stats.change_interval`), and an arm by itself
none that is narrower: few successes have little spread, by seeds too. Where all scores are equal it is
Wilson's (`stats.no_spread`). A p-value is the level at which the limit meets the value
that is tested, so tests and intervals cannot disagree.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modicum.stats import Difference, Interval, change_interval, interval, no_spread
from modicum.study import bootstrap
from modicum.study.twolevel import Spread, Table, spread

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
    pivots_R: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    """Of the bootstrap, sorted."""
    problems_I: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    """The mean of each problem, where the interval over problems has a say."""

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
    """The estimate of the mean of a table; with `rng` and six seeds or more, bootstrapped.

    `alone` is for an arm by itself or against the base: never narrower than over problems.
    """
    found = spread(table_SI)
    problems_I = table_SI.mean(0) if alone or found.num_seeds == 1 else None
    if rng is None or found.none or found.num_seeds <= MAX_T_SEEDS:
        return Estimate(found, bounds, problems_I=problems_I)
    return Estimate(found, bounds, bootstrap.pivots(table_SI, rng), problems_I)


def difference(found: Estimate) -> Difference:
    """The limits of an estimate of a difference."""
    narrow, wide = found.interval(0.90), found.interval(0.95)
    return Difference(found.mean, narrow.low, narrow.high, wide.low, wide.high, found.method)
