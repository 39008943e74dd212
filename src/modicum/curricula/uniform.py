"""No curriculum: the task's own order, in which every problem is as likely as any other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from modicum.curricula.base import Curriculum, Draw, Order, OrderExample, count_of
from modicum.tasks.base import Task
from modicum.types import Problem


class UniformOrder(Order):
    """Problems 0, 1, 2, ... of the train split."""

    follows_length: ClassVar[bool] = False

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        self.drawn = 0

    def next(self, count: int, progress: float) -> list[Problem]:
        first, self.drawn = self.drawn, self.drawn + count
        return [self.task.problem("train", self.seed, i) for i in range(first, self.drawn)]

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load(self, state: Mapping[str, Any]) -> None:
        self.drawn = count_of(state["drawn"])


@dataclass(frozen=True)
class Uniform(Curriculum):
    """The task's own order: every problem as likely as any other."""

    name: ClassVar[str] = "uniform"
    example: ClassVar[OrderExample] = OrderExample(
        settings="",
        difficulties=(3.0, 1.0, None, 2.0),
        draws=(
            Draw(3, 0.0, (3.0, 1.0, None)),
            Draw(3, 0.5, (2.0, 3.0, 1.0)),
            Draw(1, 0.9, (None,)),
        ),
    )

    def begin(self, task: Task, seed: int) -> Order:
        return UniformOrder(task, seed)
