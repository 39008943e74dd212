"""The curricula over arms: chances of levels, weights of problems (docs/curricula.md)."""

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Annotated, ClassVar, Literal

import numpy as np

from modicum.curricula.orders import ArmOrder, ByArm, Memory
from modicum.limits import Limits, Share
from modicum.tasks.base import Task
from modicum.types import UserError

UNSEEN = (1.0, 1.0)
Weight = Annotated[float, Limits(0, 1000)]
SCALE, SPREAD = 100.0, 10.0  # of difficulties, and the least that they span, for adarft


class E2H(ByArm):
    """Every level with a chance that moves from the easy ones to the hard ones.

    No chance is below 2 / (K (K + 1)) of K levels: 1/3 of two levels and 1 of one, so that fewer
    than three are refused. Source: E2H Reasoner, arXiv 2506.06632."""

    name: ClassVar[str] = "e2h"
    directed: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    least: ClassVar[int] = 3
    schedule: Literal["cosine", "gaussian"] = "cosine"
    power: Annotated[float, Limits(0.01, 100)] = 0.5
    width: Annotated[float, Limits(0.05, 100)] = 0.5
    difficulty: str | None = None

    def chances(self, progress: float, size: int) -> list[float]:
        """The chance of each of `size` levels."""
        floor = 2 / (size * (size + 1))
        if self.schedule == "cosine":
            early = 0.5 * (1 + math.cos(math.pi * progress))
            return [floor * (early * (size - i) + (1 - early) * (i + 1)) for i in range(size)]
        centre = progress**self.power * (size - 1)
        near = [math.exp(-(((i - centre) / self.width) ** 2) / 2) for i in range(size)]
        return [floor + (1 - size * floor) * n / sum(near) for n in near]

    def choose(self, order: ArmOrder, rng: Random, count: int, progress: float) -> Sequence[int]:
        size = len(order.arms)
        return rng.choices(range(size), self.chances(progress, size), k=count)


def believed(memory: Memory, right: int, of: int, decay: float) -> Memory:
    """a and b of the Beta of a pass rate after so many right answers of so many; the past fades."""
    a, b = memory or UNSEEN
    return 1 + decay * (a - 1) + right, 1 + decay * (b - 1) + of - right


def learnability(memory: Memory, group: int) -> float:
    """E[p (1 - p)], the expected variance of a verdict: 1/6 of what was not seen."""
    a, b = memory or UNSEEN
    return a * b / ((a + b) * (a + b + 1))


def informative(memory: Memory, group: int) -> float:
    """1 - p^G - (1 - p)^G at the mean p, the chance of a signal, which is flat in the middle."""
    a, b = memory or UNSEEN
    p, group = a / (a + b), group or 8
    return 1 - p**group - (1 - p) ** group


WEIGHTS = {"learnability": learnability, "informative": informative}


class Bandit(ByArm):
    """The level whose pass rate seems nearest to one half, by Thompson sampling.

    For each problem a pass rate p of every level is drawn as it is believed to be, and the level of
    the largest p (1 - p) is taken; a share `explore` is of any level. The project's own form; for
    bandits over levels see arXiv 2505.14970."""

    decay: Share = 0.9
    explore: Share = 0.1
    difficulty: str | None = None

    def choose(self, order: ArmOrder, rng: Random, count: int, progress: float) -> Sequence[int]:
        found = []
        for _ in range(count):
            rates = [rng.betavariate(*(memory or UNSEEN)) for memory in order.memory]
            best = max(range(len(rates)), key=lambda i: rates[i] * (1 - rates[i]))
            found.append(rng.randrange(len(rates)) if rng.random() < self.explore else best)
        return found

    def keep(self, memory: Memory, right: int, of: int) -> Memory:
        return believed(memory, right, of, self.decay)


class ByVisit(ByArm):
    """Base of those that weigh problems by what came of them, without replacement in a step."""

    least: ClassVar[int] = 1
    visits: ClassVar[bool] = True

    def choose(self, order: ArmOrder, rng: Random, count: int, progress: float) -> Sequence[int]:
        """The largest of log weight plus Gumbel noise."""
        size, total, explore = len(order.weights), order.weights.sum(), getattr(self, "explore", 0)
        chances = order.weights / total if total else np.full(size, 1 / size)
        noise = np.random.default_rng(rng.getrandbits(63)).gumbel(size=size)
        with np.errstate(divide="ignore"):
            keys = np.log((1 - explore) * chances + explore / size) + noise
        keys[list(order.arm_of.values())] = -math.inf  # drawn in this step already
        top = np.argpartition(-keys, min(count, size - 1))[:count]
        return top[np.argsort(-keys[top])].tolist()


class Prioritized(ByVisit):
    """Problems whose pass rate seems to be near one half, and a share `explore` of all alike.

    `weight` is learnability, E[p (1 - p)] with beliefs as in `bandit`, or informative, 1 - p^G -
    (1 - p)^G. Source: Foster et al. 2025, arXiv 2502.12272, who measure p anew for each draw."""

    weight: Literal["learnability", "informative"] = "learnability"
    explore: Share = 0.1
    decay: Share = 0.9

    def keep(self, memory: Memory, right: int, of: int) -> Memory:
        return believed(memory, right, of, self.decay)

    def weigh(self, memory: Memory, group: int) -> float:
        return WEIGHTS[self.weight](memory, group)


class Pools(ByVisit):
    """Problems weighed by how many of a group were right when they were last seen.

    `hard` up to a quarter, `easy` above three quarters, `medium` between; 1 for those not seen yet.
    Equal weights are `uniform`, so they must be given. Source: prime-rl's pools."""

    hard: Weight = 1.0
    medium: Weight = 1.0
    easy: Weight = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hard == self.medium == self.easy:
            raise UserError("pools: equal weights are `uniform`; pools(medium=2, easy=0.5), say")

    def keep(self, memory: Memory, right: int, of: int) -> Memory:
        return (right / of,)

    def weigh(self, memory: Memory, group: int) -> float:
        if not memory:
            return 1.0
        return self.hard if memory[0] <= 0.25 else self.medium if memory[0] <= 0.75 else self.easy


class AdaRFT(ByArm):
    """The problems nearest to a difficulty that rises while more than `beta` of the answers is right.

    Difficulties are from 0 to 100; `rescale` stretches others to that. A problem comes once an epoch.
    Source: AdaRFT, arXiv 2504.05520, whose sampler gives the same ones again while the target stays."""

    name: ClassVar[str] = "adarft"
    directed: ClassVar[bool] = True
    visits: ClassVar[bool] = True
    eta: Annotated[float, Limits(1e-3, SCALE)] = 50.0
    alpha: Annotated[float, Limits(1e-3, 100)] = 2.0
    beta: Annotated[float, Limits(0.01, 0.99)] = 0.5
    rescale: bool = False
    difficulty: str | None = None

    def scaled(self, levels: Sequence[float], task: Task) -> Sequence[float]:
        known = [level for level in levels if level < math.inf]
        low, high = min(known), max(known)
        if self.rescale:
            return [SCALE * (level - low) / (high - low) for level in levels]
        if low < 0 or high > SCALE or high - low < SPREAD:
            raise UserError.of("scale", task=task, low=low, high=high)
        return levels

    def choose(self, order: ArmOrder, rng: Random, count: int, progress: float) -> Sequence[int]:
        # Those that came in the fewest epochs, and of them the nearest.
        return np.lexsort((np.abs(order.levels - order.target), order.places))[:count].tolist()

    def moved(self, target: float, mean: float) -> float:
        """The target after a step with this share of right answers."""
        return target + self.eta * math.tanh(self.alpha * (mean - self.beta))

    def hear(self, order: ArmOrder, told: Mapping[int, tuple[int, int]]) -> None:
        if told:
            known = order.levels[order.levels < math.inf]
            mean = sum(right for right, _ in told.values()) / sum(of for _, of in told.values())
            order.target = float(np.clip(self.moved(order.target, mean), known.min(), known.max()))
