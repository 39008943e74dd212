"""A table of scores, seeds x problems: its mean, mean squares and a t-interval of the mean.

Two-way random effects (Searle, Casella and McCulloch 1992, ch. 4): docs/statistics.md. The
half-width h is a MOVER interval (Zou and Donner 2008):

    h^2 = t(S-1)^2 MS_seeds / (S I)  +  t(I-1)^2 max(0, MS_problems - MS_rest) / (S I)

    S seed, I problem
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from modicum.results import Variance
from modicum.stats import ROUNDING
from modicum.types import UserError

Table = NDArray[np.float64]
POWER, MOST = 0.8, 100  # of `seeds_needed`


@dataclass(frozen=True)
class Spread:
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
    def components(self) -> Variance:
        """The moment estimates of the three variances; negative ones are 0."""
        return Variance(
            max(0.0, self.seeds - self.residual) / self.num_problems,
            max(0.0, self.problems - self.residual) / self.num_seeds,
            self.residual,
        )

    def half_width(self, level: float) -> float:
        """Half the width of the two-sided interval at `level`."""
        return half_width(self.num_seeds, self.num_problems, (1 + level) / 2, self.parts)


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
    table_SI = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if table_SI.shape[1] < 2:
        raise UserError(f"scores must be of at least two problems, not of {table_SI.shape[1]}")
    return table_SI


def seeds_needed(found: Spread, margin: float, alpha: float = 0.05) -> int | None:
    """The smallest number of seeds above those there are that settles an arm with a chance of 80 %.

    `alpha` is one-sided. None: `MOST` are not enough, as more do not shrink B/I; or one seed.
    """
    if found.num_seeds < 2 or found.none:
        return None
    problems, variances = found.num_problems, found.components
    for seeds in range(found.num_seeds + 1, MOST + 1):
        seen = variances.seed / seeds + variances.residual / (seeds * problems)
        power, not_worse, worse = (
            half_width(seeds, problems, probability, (seen, variances.problem / problems))
            for probability in (POWER, 1 - alpha, 0.975)
        )
        if found.mean + margin >= not_worse + power or -found.mean >= worse + power:
            return seeds
    return None
