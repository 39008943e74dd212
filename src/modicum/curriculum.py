"""Which problems come next.

A curriculum is a frozen dataclass with `problems(task, seed, step, count)`. It depends on
nothing but its arguments, so a resumed run sees what the uncut one saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from modicum import spec
from modicum.tasks.base import Task
from modicum.types import Problem


class Curriculum(Protocol):
    """Chooses the problems of a step."""

    def problems(self, task: Task, seed: int, step: int, count: int) -> list[Problem]:
        """The `count` training problems of `step`."""
        ...


@dataclass(frozen=True)
class Uniform(spec.Spec):
    """The task's own order: every problem as likely as any other."""

    name: ClassVar[str] = "uniform"

    def problems(self, task: Task, seed: int, step: int, count: int) -> list[Problem]:
        """Problems step*count .. step*count + count - 1 of the train split."""
        return [task.problem("train", seed, step * count + i) for i in range(count)]


CURRICULA: dict[str, type] = {cls.name: cls for cls in (Uniform,)}


def parse(text: str) -> Curriculum:
    """The curriculum that an expression names."""
    return spec.build("curriculum", text, CURRICULA)
