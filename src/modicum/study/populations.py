"""Simulated studies of known truth: scores of an arm, its control and the base.

A problem has a chance p of being solved by the control, from a Beta distribution. For the
arm it is q = (1 - w) p + w p', with p' drawn anew, so w sets how differently the two do on
a problem. Training seeds move chances along 4 p (1 - p): problems solved half the time move
most, certain ones not at all. All noises are symmetric and cut so that chances stay in
[0, 1], so the true difference, over all seeds and problems, is exactly the one asked for:

    q + (shift + seed + rest) 4 q (1 - q),      shift = difference / E[4 q (1 - q)]

A score is the share of right ones among K samples. With `collapse`, that share of the arm's
seeds keeps only a tenth of its chances, and the shift makes up for it.

    S seed, I problem
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modicum.study.twolevel import Table

KEPT = 0.1  # Of a collapsed seed's chances.
BASE = 0.4  # Of the control's chances, for the untrained model.
ROOM = 0.25  # Chances stay in [0, 1] while all moves together are at most this.


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
