"""Curricula by rank: the task's own order without the problems outside of a window.

The rank of a problem is the share of the train split that is easier; of equal ones a hash of seed
and problem decides, so that parts have equal sizes. A split of up to `RANKED` problems is ranked
whole, another one by its first `RANKED`. What has no difficulty comes in the last part.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import ClassVar

from modicum.curricula.base import Curriculum, Measure, Order, pool, rated, tie
from modicum.spec import at_least
from modicum.tasks.base import Task
from modicum.types import Problem, UserError

BATCHES = 4  # that what is open at first must hold


class ByRank(Curriculum):
    """Base of the curricula whose problems are those of some ranks."""

    directed: ClassVar[bool] = True
    hard_first: ClassVar[bool] = False
    guarded: ClassVar[bool] = False
    """Whether few open problems are refused."""

    def window(self, progress: float, size: int) -> tuple[int, int]:
        """The ranks of `size` that are open, from and below; 0 is the first to come."""
        raise NotImplementedError

    def metrics(self, progress: float) -> dict[str, float]:
        """What it logs of itself."""
        return {}

    def order(self, task: Task, seed: int, measure: Measure) -> Order:
        return RankedOrder(task, seed, self, measure)


class RankedOrder(Order):
    """The task's own order without what is outside of the window."""

    follows_length: ClassVar[bool] = True

    def __init__(self, task: Task, seed: int, member: ByRank, measure: Measure) -> None:
        super().__init__(task, seed)
        self.member, self.measure, self.progress = member, measure, 0.0
        problems = pool(task, seed)
        found, self.told = rated(str(member), task, problems, measure, getattr(member, "stages", 2))
        self.keys = {p.id: (found[p.id], tie(seed, p)) for p in problems if p.id in found}
        self.ranked = sorted(set(self.keys.values()))

    def next(self, count: int, progress: float) -> list[Problem]:
        self.progress = progress
        self.low, self.high = self.member.window(progress, len(self.ranked))
        return super().next(count, progress)

    def belongs(self, problem: Problem) -> bool:
        size = len(self.ranked)
        if (key := self.keys.get(problem.id)) is None:
            if (level := self.measure(problem)) is None:
                return self.high >= size
            key = level, tie(self.seed, problem)
        # What is harder than all that were ranked counts as the hardest.
        rank = min(bisect.bisect_left(self.ranked, key), size - 1)
        return self.low <= (size - 1 - rank if self.member.hard_first else rank) < self.high

    def look(self, count: int, steps: int) -> list[str]:
        _, first = self.member.window(0.0, len(self.ranked))
        if self.member.guarded and self.task.size("train") and first < BATCHES * count:
            raise UserError(
                f"{self.member}: {first} problems are open at first, fewer than {BATCHES} batches"
                f" of {count}; a larger c0, or fewer --prompts-per-step"
            )
        return self.told

    def metrics(self) -> dict[str, float]:
        return self.member.metrics(self.progress) | super().metrics()


@dataclass(frozen=True)
class EasyToHard(ByRank):
    """The easiest part of the problems first, a harder part with every stage.

        stage s = min(floor(u S), S - 1)      u: how much of the run is behind it
        ranks in [0, (s + 1) / S]             cumulative: easier problems stay
        ranks in [s / S, (s + 1) / S]         otherwise

    Source of the staged form: curriculum learning (Bengio et al. 2009).
    """

    name: ClassVar[str] = "easy_to_hard"
    stages: int = 4
    cumulative: bool = True
    difficulty: str | None = None

    def __post_init__(self) -> None:
        at_least(self, stages=(2, 100))

    def stage(self, progress: float) -> int:
        """The number of the stage, from 0."""
        return min(int(progress * self.stages), self.stages - 1)

    def metrics(self, progress: float) -> dict[str, float]:
        return {"curriculum/stage": float(self.stage(progress))}

    def window(self, progress: float, size: int) -> tuple[int, int]:
        stage = self.stage(progress)
        # In whole numbers: 15 / 22 * 22 is a little below 15.
        start, end = (-(-part * size // self.stages) for part in (stage, stage + 1))
        return 0 if self.cumulative else start, end


@dataclass(frozen=True)
class HardToEasy(EasyToHard):
    """The hardest part of the problems first: `easy_to_hard` with the ranks turned round."""

    name: ClassVar[str] = "hard_to_easy"
    hard_first: ClassVar[bool] = True


@dataclass(frozen=True)
class Competence(ByRank):
    """The problems up to a rank that grows with every step, all of them alike.

        c(u) = min(1, (u / T (1 - c0^p) + c0^p)^(1 / p))     T: full_at, p: power

    What is open at first must hold four batches. Source: Platanios et al. 2019, arXiv 1903.09848,
    with c0 = 0.01 and T by the length of a baseline.
    """

    name: ClassVar[str] = "competence"
    guarded: ClassVar[bool] = True
    power: float = 2.0
    c0: float = 0.1
    full_at: float = 0.5
    difficulty: str | None = None

    def __post_init__(self) -> None:
        at_least(self, power=(0.1, 10), c0=(1e-4, 1), full_at=(1e-4, 1))

    def share(self, progress: float) -> float:
        """c(u), the share of the ranks that are open."""
        start = self.c0**self.power
        return min(1.0, (progress / self.full_at * (1 - start) + start) ** (1 / self.power))

    def window(self, progress: float, size: int) -> tuple[int, int]:
        return 0, max(1, int(self.share(progress) * size + 1e-9))
