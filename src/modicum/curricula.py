"""Curricula: which problems come next.

A curriculum is a frozen dataclass; `begin` makes the `Order` of a run, which has a state.
The loop asks it for the problems of a step, shows it what came of all that were drawn
(before any group is left out), and keeps its state in checkpoints, so that a resumed run
goes on as the uncut one would.

To add one: a `Curriculum`, its row in CURRICULA, and in tests/test_curricula.py an example worked
out by hand, which the contract suite compares.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from modicum.limits import Limits
from modicum.spec import Spec, build
from modicum.tasks.base import Task, stream
from modicum.types import Problem, UserError

RANKED = 10_000  # problems of a split that has an end
SAMPLED = 2_000  # problems of one that has none


@dataclass(frozen=True)
class Seen:
    """What came of one problem that was drawn.

    `rewards` are the totals of its completions, NaN for no verdict. `right` of `known`
    verdicts of the term `accuracy` were full; both are 0 where the reward has no such term.
    """

    problem: Problem
    rewards: tuple[float, ...]
    right: int
    known: int


class Order:
    """The problems of one run: those of the task's own order that belong to what is asked for."""

    follows_length: ClassVar[bool] = True
    """Whether `progress` matters, so that a longer run draws other problems from its first step."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.drawn = 0

    def belongs(self, problem: Problem) -> bool:
        """Whether a problem is one of those that come now."""
        return True

    def next(self, count: int, progress: float) -> list[Problem]:
        """`count` more training problems; `progress` of the run is behind it, from 0 to 1."""
        found: list[Problem] = []
        while len(found) < count:
            problem = self.task.problem("train", self.seed, self.drawn)
            self.drawn += 1
            if self.belongs(problem):
                found.append(problem)
        return found

    def observe(self, seen: Sequence[Seen]) -> None:
        """Hear what came of the problems of a step, all of them; unless it says, nothing of it."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {"drawn": self.drawn}

    def load(self, state: Mapping[str, Any]) -> None:
        """Set what `state` gave; ValueError for what is none."""
        if type(drawn := state["drawn"]) is not int or drawn < 0:
            raise ValueError(f"{drawn!r} is no count")
        self.drawn = drawn

    def metrics(self) -> dict[str, float]:
        """What the last step's problems were, by names that begin with `curriculum/`."""
        return {}


class Curriculum(Spec, ABC):
    """Chooses the problems of every step."""

    @abstractmethod
    def begin(self, task: Task, seed: int) -> Order:
        """The order of a run on `task`; UserError where the task does not fit."""


class UniformOrder(Order):
    """Problems 0, 1, 2, ... of the train split."""

    follows_length: ClassVar[bool] = False


@dataclass(frozen=True)
class Uniform(Curriculum):
    """The task's own order: every problem as likely as any other."""

    name: ClassVar[str] = "uniform"

    def begin(self, task: Task, seed: int) -> Order:
        return UniformOrder(task, seed)


class StagedOrder(Order):
    """The task's own order without what does not belong to the present stage."""

    follows_length: ClassVar[bool] = True

    def __init__(self, task: Task, seed: int, stages: int, cumulative: bool) -> None:
        super().__init__(task, seed)
        self.stages, self.cumulative = stages, cumulative
        self.stage = 0
        self.shown: list[float] = []
        size = task.size("train")
        self.size = SAMPLED if size is None else min(size, RANKED)
        first = (task.problem("train", seed, index) for index in range(self.size))
        self.ranked = sorted({key for p in first if (key := self._key(p)) is not None})
        if len(self.ranked) < stages:
            raise UserError(
                f"easy_to_hard(stages={stages}) needs at least {stages} problems with a difficulty;"
                f" of {self.size} problems of {task} {len(self.ranked)} have one"
            )
        if self.ranked[0][0] == self.ranked[-1][0]:
            raise UserError(
                f"easy_to_hard: all problems of {task} have the same difficulty"
                f" ({self.ranked[0][0]:g}), so none is easier than another"
            )

    def next(self, count: int, progress: float) -> list[Problem]:
        self.stage = min(int(progress * self.stages), self.stages - 1)
        found = super().next(count, progress)
        self.shown = [p.difficulty for p in found if p.difficulty is not None]
        return found

    def metrics(self) -> dict[str, float]:
        found = {"curriculum/stage": float(self.stage)}
        if self.shown:
            found["curriculum/difficulty"] = sum(self.shown) / len(self.shown)
        return found

    def belongs(self, problem: Problem) -> bool:
        key = self._key(problem)
        if key is None:
            return self.stage == self.stages - 1
        easier = bisect.bisect_left(self.ranked, key)
        # A problem that is harder than all that were ranked is of the last stage.
        place = min(easier * self.stages // len(self.ranked), self.stages - 1)
        return place <= self.stage if self.cumulative else place == self.stage

    def _key(self, problem: Problem) -> tuple[float, float] | None:
        if problem.difficulty is None:
            return None
        return problem.difficulty, stream(self.seed, "easy_to_hard", problem.id).random()


@dataclass(frozen=True)
class EasyToHard(Curriculum):
    """The easiest part of the problems first, a harder part with every stage.

        stage s = min(floor(u S), S - 1)      u: how much of the run is behind it
        ranks in [0, (s + 1) / S]             cumulative: easier problems stay
        ranks in [s / S, (s + 1) / S]         otherwise

    The rank of a problem is the share of the train split that is easier; of equal ones a hash
    of seed and problem decides, so that stages have equal sizes. A split of up to `RANKED`
    problems is ranked whole, another one by its first `RANKED`. Problems without a difficulty
    come in the last stage. Source of the staged form: curriculum learning (Bengio et al. 2009).
    """

    name: ClassVar[str] = "easy_to_hard"
    stages: Annotated[int, Limits(2, 100)] = 4
    cumulative: bool = True

    def begin(self, task: Task, seed: int) -> Order:
        return StagedOrder(task, seed, self.stages, self.cumulative)


CURRICULA: dict[str, type] = {cls.name: cls for cls in (Uniform, EasyToHard)}


def parse(text: str) -> Curriculum:
    """The curriculum that an expression such as `easy_to_hard(stages=4)` names."""
    return build("curriculum", text, CURRICULA)
