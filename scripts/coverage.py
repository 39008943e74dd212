"""How often the intervals of an evaluation hold the truth: the table of docs/evaluation.md.

    python scripts/coverage.py            20 seconds

Each row draws 4,000 evaluations: the chances of n problems from a beta distribution with mean
p and a + b as given ("same": all have the chance p), then the samples of each. Printed are how often
the 95 % interval holds p, in percent, and its mean half-width in points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from modicum.stats import Interval, interval, no_spread

DRAWS = 4_000
CASES = (
    (30, 1, 0.10, 0.0), (64, 1, 0.047, 0.0), (256, 1, 0.019, 0.0), (30, 1, 0.50, 0.0),
    (30, 4, 0.10, 0.05), (30, 4, 0.10, 0.5), (30, 4, 0.10, 2.0), (30, 4, 0.10, 50.0),
    (64, 4, 0.047, 0.05), (64, 4, 0.047, 0.5), (64, 4, 0.047, 2.0),
    (256, 4, 0.019, 0.05), (256, 4, 0.019, 0.5), (256, 4, 0.019, 2.0),
    (256, 4, 0.50, 0.5), (256, 4, 0.50, 2.0), (64, 4, 0.30, 0.5), (16, 4, 0.50, 0.5),
    (64, 16, 0.05, 0.5), (64, 16, 0.50, 0.5), (16, 16, 0.05, 2.0),
)  # fmt: skip


def t_interval(scores_I: NDArray[np.float64]) -> Interval:
    """What `stats.interval` gave before: Student's t over problems, Wilson without spread."""
    count, mean = len(scores_I), float(scores_I.mean())
    if np.ptp(scores_I) == 0:
        return no_spread(mean, count, 0.95, (0.0, 1.0))
    half = float(special.stdtrit(count - 1, 0.975)) * float(scores_I.std(ddof=1)) / count**0.5
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    print("| problems | samples | p | a + b | holds | half-width | t holds | half-width |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for count, samples, mean, alike in CASES:
        chances = np.full((DRAWS, count), mean)
        if alike:
            chances = rng.beta(mean * alike, (1 - mean) * alike, size=(DRAWS, count))
        scores = rng.binomial(samples, chances) / samples
        cells = [str(count), str(samples), f"{mean:.1%}", f"{alike:g}" if alike else "same"]
        for method in (interval, t_interval):
            found = [method(row) for row in scores]
            holds = np.mean([one.low <= mean <= one.high for one in found])
            half = np.mean([one.high - one.low for one in found]) / 2
            cells += [f"{holds:.1%}", f"{100 * half:.1f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
