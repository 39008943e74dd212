"""The hierarchical bootstrap of a table of seeds x problems, studentised.

Seeds and problems are drawn with replacement, each by itself; the resampled table has the
rows and columns that were drawn (Owen 2007, "The pigeonhole bootstrap"). Of each resample
stands its pivot T* = (mean* - mean) / standard error*, with the standard error of
`twolevel.Spread`, and the limits of the mean come from the quantiles of T* (Efron and
Tibshirani 1993, ch. 12). The percentile bootstrap is not used: here the mean of a resample
varies by A/S (S-1)/S + B/I + 3 E/(S I), so its interval is too narrow where seeds vary and
too wide where they do not. docs/statistics.md has both measured.

A resample is a vector of counts over seeds and one over problems, so that all of them
together are three matrix products.

    R resample, S seed, I problem
"""

import numpy as np
from numpy.typing import NDArray

from modicum.study.twolevel import Table

RESAMPLES = 9_999
BLOCK = 200  # Resamples worked on at once, so that all of it stays in the cache.


def pivots(
    table_SI: Table, rng: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """The pivots of `resamples` tables, sorted; resamples without spread are left out."""
    centred_SI = table_SI - table_SI.mean()
    found = []
    for start in range(0, resamples, BLOCK):
        count = min(BLOCK, resamples - start)
        seeds_RS = counts(rng, count, table_SI.shape[0])
        problems_RI = counts(rng, count, table_SI.shape[1])
        found.append(_pivots(centred_SI, seeds_RS, problems_RI))
    return np.sort(np.concatenate(found))


def counts(rng: np.random.Generator, rows: int, size: int) -> NDArray[np.float64]:
    """How often each of `size` things was drawn in `size` draws, for each row."""
    drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _pivots(
    centred_SI: Table, seeds_RS: NDArray[np.float64], problems_RI: NDArray[np.float64]
) -> NDArray[np.float64]:
    num_seeds, num_problems = centred_SI.shape
    cells = num_seeds * num_problems
    rows_RS = problems_RI @ centred_SI.T / num_problems
    columns_RI = seeds_RS @ centred_SI / num_seeds
    mean_R = (seeds_RS * rows_RS).sum(1) / num_seeds
    # Sums of squares around the mean of the resample; the whole one splits into three.
    whole_R = ((seeds_RS @ centred_SI**2) * problems_RI).sum(1) - cells * mean_R**2
    seeds_R = num_problems * (seeds_RS * rows_RS**2).sum(1) - cells * mean_R**2
    problems_R = num_seeds * (problems_RI * columns_RI**2).sum(1) - cells * mean_R**2
    residual_R = np.maximum(whole_R - seeds_R - problems_R, 0) / (
        (num_seeds - 1) * (num_problems - 1)
    )
    own_R = np.maximum(problems_R / (num_problems - 1) - residual_R, 0)
    variance_R = (np.maximum(seeds_R, 0) / (num_seeds - 1) + own_R) / cells
    # Rounding leaves a resample without spread at about 1e-17 of the scores' square.
    seen_R = variance_R > 1e-15
    return mean_R[seen_R] / np.sqrt(variance_R[seen_R])
