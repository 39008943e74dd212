"""How often a study's statistics are wrong, on simulated studies whose truth is known.

    python scripts/simulate.py

draws 2,000 studies for each scenario and 3, 5 and 10 seeds, twice: with a true difference of
0, and with one half a point beyond the margin. It prints how often intervals hold the
truth and how often a false claim is made, in percent. docs/statistics.md has the table.

A problem has a chance p of being solved by the control, from a Beta distribution. For the
arm it is q = (1 - w) p + w p', with p' drawn anew, so w sets how differently the two do on
a problem. Training seeds move chances along 4 p (1 - p): problems solved half the time move
most, certain ones not at all. All noises are symmetric and cut so that chances stay in
[0, 1], so the true difference, over all seeds and problems, is exactly the one asked for:

    q + (shift + seed + rest) 4 q (1 - q),      shift = difference / E[4 q (1 - q)]

A score is the share of right ones among K samples. With `collapse`, that share of the arm's
seeds keeps only a tenth of its chances, and the shift makes up for it.

    R resample, S seed, I problem
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from modicum.stats import Difference, Interval
from modicum.study.estimate import (
    BOOTSTRAP,
    MAX_T_SEEDS,
    Estimate,
    Table,
    counts,
    pivots,
    retention,
    spread,
)

KEPT = 0.1  # Of a collapsed seed's chances.
BASE = 0.4  # Of the control's chances, for the untrained model.
ROOM = 0.25  # Chances stay in [0, 1] while all moves together are at most this.
MARGIN = 0.02
BEYOND = 0.005
RESAMPLES = 999  # Of each bootstrap; studies take 9,999.


@dataclass(frozen=True)
class Scenario:
    """A population of seeds and problems; standard deviations are in fractions, not points."""

    name: str
    seed_sd: float
    """Of the difference of two arms, by seed, over all problems."""
    problem_sd: float
    """Of the difference of two arms, by problem, over all seeds."""
    rest_sd: float = 0.1
    """Of a chance by seed and problem, of problems solved half the time."""
    num_problems: int = 256
    samples: int = 4
    accuracy: float = 0.5
    """Of the control."""
    concentration: float = 2.0
    """Of the Beta distribution; 2 at an accuracy of a half is the uniform one."""
    collapse: float = 0.0

    @property
    def variance(self) -> float:
        """Of the control's chances over problems."""
        return self.accuracy * (1 - self.accuracy) / (self.concentration + 1)

    @property
    def weight(self) -> float:
        """The w of this module's docstring."""
        return self.problem_sd / (2 * self.variance) ** 0.5


@dataclass(frozen=True)
class Scores:
    """What a simulated study finds."""

    arm_SI: Table
    control_SI: Table
    base_I: Table
    retention: float
    """The true one."""


def draw(scenario: Scenario, seeds: int, difference: float, rng: np.random.Generator) -> Scores:
    """The scores of one study over `seeds` seeds whose true difference is `difference`."""
    mean, variance, weight = scenario.accuracy, scenario.variance, scenario.weight
    a, b = mean * scenario.concentration, (1 - mean) * scenario.concentration
    control_I, other_I = rng.beta(a, b, (2, scenario.num_problems))
    arm_I = (1 - weight) * control_I + weight * other_I
    slope = _slope(mean, variance * ((1 - weight) ** 2 + weight**2))
    lasting = 1 - scenario.collapse * (1 - KEPT)
    shift = ((mean + difference) / lasting - mean) / slope
    assert abs(shift) < ROOM, f"{scenario.name} leaves no room for {difference}"
    arm_SI = _moved(arm_I, seeds, shift, slope, scenario, rng)
    arm_SI *= np.where(rng.random((seeds, 1)) < scenario.collapse, KEPT, 1.0)
    control_SI = _moved(control_I, seeds, 0.0, _slope(mean, variance), scenario, rng)
    count = scenario.samples
    base_I = rng.binomial(count, BASE * control_I[None]) / count
    gain = (1 - BASE) * mean
    return Scores(
        rng.binomial(count, arm_SI) / count,
        rng.binomial(count, control_SI) / count,
        base_I,
        (gain + difference) / gain,
    )


def _slope(mean: float, variance: float) -> float:
    """E[4 p (1 - p)]."""
    return 4 * (mean - mean**2 - variance)


def _moved(
    chances_I: NDArray[np.float64],
    seeds: int,
    shift: float,
    slope: float,
    scenario: Scenario,
    rng: np.random.Generator,
) -> Table:
    """Chances by seed and problem."""
    most = (ROOM - abs(shift)) / 2
    # The difference of two arms has the variance of both.
    by_seed_S1 = rng.normal(0, scenario.seed_sd / 2**0.5 / slope, (seeds, 1))
    rest_SI = rng.normal(0, scenario.rest_sd, (seeds, len(chances_I)))
    move_SI = shift + by_seed_S1.clip(-most, most) + rest_SI.clip(-most, most)
    return chances_I + move_SI * 4 * chances_I * (1 - chances_I)


SCENARIOS = (
    Scenario("usual", seed_sd=0.015, problem_sd=0.10),
    Scenario("quiet", seed_sd=0.005, problem_sd=0.05, rest_sd=0.05),
    Scenario("seeds vary", seed_sd=0.05, problem_sd=0.10, num_problems=128),
    Scenario("problems vary", seed_sd=0.01, problem_sd=0.25, num_problems=128),
    Scenario("both vary", seed_sd=0.03, problem_sd=0.20),
    Scenario("no seeds", seed_sd=0.0, problem_sd=0.25, rest_sd=0.0, num_problems=128),
    Scenario("no effects", seed_sd=0.0, problem_sd=0.0, rest_sd=0.0),
    Scenario("near 95 %", seed_sd=0.005, problem_sd=0.05, rest_sd=0.05, accuracy=0.95),
    Scenario("one in five collapses", seed_sd=0.01, problem_sd=0.10, collapse=0.2),
)
Method = Callable[[Table, np.random.Generator], Difference]


@dataclass(frozen=True)
class ErrorRates:
    """Shares of simulated studies; `width` is a difference, as a fraction."""

    scenario: str
    seeds: int
    studies: int
    coverage95: float
    """The 95 % interval holds a true difference of 0."""
    coverage90: float
    """The 90 % interval holds it."""
    false_superior: float
    """"Better" at a true difference of 0."""
    false_not_worse: float
    """"Not worse" at a true difference of -(margin + BEYOND)."""
    not_worse: float
    """"Not worse" at a true difference of 0, which is right."""
    width: float
    """Mean half-width of the 95 % interval."""
    retention: float
    """The 95 % interval of retention holds the true one, where the control's gain is clear."""


def two_level(table_SI: Table, rng: np.random.Generator) -> Difference:
    """What studies use (`estimate.estimate`), with fewer resamples."""
    found = spread(table_SI)
    resampled = found.num_seeds > MAX_T_SEEDS and not found.none
    pivots_R = pivots(table_SI, rng, RESAMPLES) if resampled else None
    return Estimate(found, (-1.0, 1.0), pivots_R).difference


def seed_means(table_SI: Table, rng: np.random.Generator) -> Difference:
    """For comparison: the t-interval of the seeds' means, as if problems were all there are."""
    means_S = table_SI.mean(1)
    error = float(means_S.std(ddof=1)) / len(means_S) ** 0.5
    narrow, wide = special.stdtrit(len(means_S) - 1, [0.95, 0.975]) * error
    mean = float(means_S.mean())
    return Difference(
        mean, mean - narrow, mean + narrow, mean - wide, mean + wide, "t-interval over seeds"
    )


def means(table_SI: Table, rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """The means of `resamples` tables, sorted: what the percentile bootstrap takes."""
    num_seeds, num_problems = table_SI.shape
    seeds_RS = counts(rng, resamples, num_seeds)
    problems_RI = counts(rng, resamples, num_problems)
    return np.sort(((seeds_RS @ table_SI) * problems_RI).sum(1) / table_SI.size)


def percentile(table_SI: Table, rng: np.random.Generator) -> Difference:
    """For comparison: the percentile interval of the same bootstrap."""
    means_R = means(table_SI, rng, RESAMPLES)
    low95, low90, high90, high95 = map(float, np.quantile(means_R, [0.025, 0.05, 0.95, 0.975]))
    return Difference(float(table_SI.mean()), low90, high90, low95, high95, BOOTSTRAP)


METHODS: dict[str, Method] = {
    "two-level": two_level,
    "seed-means": seed_means,
    "percentile": percentile,
}


def simulate(
    scenario: Scenario,
    seeds: int,
    studies: int,
    rng: np.random.Generator,
    method: Method = two_level,
) -> ErrorRates:
    """The rates of one scenario over `studies` studies for each of the two true differences."""
    equal = [_study(scenario, seeds, 0.0, rng, method) for _ in range(studies)]
    below = [_study(scenario, seeds, -MARGIN - BEYOND, rng, method) for _ in range(studies)]
    kept = [share for _, share in equal + below if share is not None]
    same, lower = [found for found, _ in equal], [found for found, _ in below]
    return ErrorRates(
        scenario=scenario.name,
        seeds=seeds,
        studies=studies,
        coverage95=_share([d.low95 <= 0 <= d.high95 for d in same]),
        coverage90=_share([d.low90 <= 0 <= d.high90 for d in same]),
        false_superior=_share([d.low90 > -MARGIN and d.low95 > 0 for d in same]),
        false_not_worse=_share([d.low90 > -MARGIN for d in lower]),
        not_worse=_share([d.low90 > -MARGIN for d in same]),
        width=float(np.mean([(d.high95 - d.low95) / 2 for d in same])),
        retention=_share(kept),
    )


def _study(
    scenario: Scenario, seeds: int, true: float, rng: np.random.Generator, method: Method
) -> tuple[Difference, bool | None]:
    """The difference that one study finds, and whether its retention holds the true one."""
    scores = draw(scenario, seeds, true, rng)
    share = retention(scores.arm_SI, scores.control_SI, scores.base_I)
    held = share.low <= scores.retention <= share.high if isinstance(share, Interval) else None
    return method(scores.arm_SI - scores.control_SI, rng), held


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _row(scenario: Scenario, seeds: int, given: argparse.Namespace) -> ErrorRates:
    """One scenario at one number of seeds, with random numbers of its own."""
    rng = np.random.default_rng((given.seed, SCENARIOS.index(scenario), seeds))
    return simulate(scenario, seeds, given.studies, rng, METHODS[given.method])


COLUMNS = {
    "seeds": "seeds",
    "coverage95": "95 % holds",
    "coverage90": "90 % holds",
    "false_superior": "false better",
    "false_not_worse": "false not worse",
    "not_worse": "not worse at 0",
    "width": "half-width",
    "retention": "retention holds",
}


def table(found: Sequence[ErrorRates]) -> str:
    """The rates as a Markdown table, in percent and points."""
    lines = [f"| scenario | {' | '.join(COLUMNS.values())} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for rates in found:
        values = [
            str(rates.seeds) if name == "seeds" else f"{100 * getattr(rates, name):.1f}"
            for name in COLUMNS
        ]
        lines.append(f"| {rates.scenario} | {' | '.join(values)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; options are in `--help`."""
    parser = argparse.ArgumentParser(
        prog="python scripts/simulate.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--studies", type=int, default=2000, help="for each row and truth (2000)")
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 5, 10], help="of seeds")
    parser.add_argument("--method", choices=METHODS, default="two-level")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes; the table is the same (1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if min(given.studies, given.jobs) < 1 or min(given.counts) < 2:
        parser.error("studies and jobs start at 1, counts of seeds at 2")
    row = functools.partial(_row, given=given)
    cells = list(zip(*product(SCENARIOS, given.counts), strict=True))
    if given.jobs == 1:
        found = list(map(row, *cells))
    else:
        context = multiprocessing.get_context("spawn")  # Threads of a caller do not survive a fork.
        with ProcessPoolExecutor(given.jobs, context) as pool:
            found = list(pool.map(row, *cells))
    rows: list[dict[str, Any]] = [dataclasses.asdict(rates) for rates in found]
    print(json.dumps(rows, indent=1) if given.json else table(found))


if __name__ == "__main__":
    main()
