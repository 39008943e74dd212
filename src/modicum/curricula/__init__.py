"""Curricula: which problems come next.

A curriculum is a frozen dataclass; `begin` makes the `Order` of a run, which has a state.
The loop asks it for the problems of a step, shows it what came of all that were drawn
(before any group is left out), and keeps its state in checkpoints, so that a resumed run
goes on as the uncut one would.

To add one: a `Curriculum` (by rank: a `window`; over levels: `choose`; by visits: `weigh`), its row
in CURRICULA, a section in docs/curricula.md, and in tests/test_curricula.py an example worked out
by hand, which the contract suite compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from modicum.curricula.base import Curriculum, Measure, Order, Seen
from modicum.curricula.members import E2H, AdaRFT, Bandit, Pools, Prioritized
from modicum.curricula.ranked import Competence, EasyToHard, HardToEasy
from modicum.spec import build
from modicum.tasks.base import Task
from modicum.types import UserError

__all__ = ["CURRICULA", "Curriculum", "Order", "Seen", "Uniform", "parse"]


class UniformOrder(Order):
    """Problems 0, 1, 2, ... of the train split."""

    follows_length: ClassVar[bool] = False

    def metrics(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Uniform(Curriculum):
    """The task's own order: every problem, and every level, as likely as any other."""

    name: ClassVar[str] = "uniform"

    def order(self, task: Task, seed: int, measure: Measure) -> Order:
        return UniformOrder(task, seed)


@dataclass(frozen=True)
class Placebo(Curriculum):
    """A curriculum whose difficulties have changed places: `placebo(easy_to_hard(stages=2))`.

    All is as in the other, but for what it goes by: levels, or the problems of a fixed set, have
    the difficulty of another one, by a key of the seed. What it wins over `uniform` is no merit of
    the difficulty.
    """

    name: ClassVar[str] = "placebo"
    curriculum: str

    def __post_init__(self) -> None:
        if not parse(self.curriculum).directed:
            raise UserError(
                f"placebo: {self.curriculum} does not go by what is easier; `uniform` is what it"
                " compares with"
            )

    def __str__(self) -> str:
        return f"placebo({parse(self.curriculum)})"

    def begin(self, task: Task, seed: int, permuted: bool = True) -> Order:
        return parse(self.curriculum).begin(task, seed, permuted)


CURRICULA: dict[str, type] = {
    cls.name: cls
    for cls in (
        *(Uniform, EasyToHard, HardToEasy, E2H, Competence, AdaRFT),
        *(Prioritized, Bandit, Pools, Placebo),
    )
}


def parse(text: str) -> Curriculum:
    """The curriculum that an expression such as `easy_to_hard(stages=4)` names."""
    return build("curriculum", text, CURRICULA)
