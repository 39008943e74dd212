"""What a curriculum is: settings that begin an order of problems.

A curriculum is a frozen dataclass; `begin` makes the `Order` of a run, which has a state.
The loop asks it for the problems of a step, shows it what came of all that were drawn
(before any group is left out), and keeps its state in checkpoints, so that a resumed run
goes on as the uncut one would.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from modicum.spec import Spec
from modicum.tasks.base import Task
from modicum.types import Problem


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
