"""Curricula: which problems come next.

A curriculum is a frozen dataclass; `begin` makes the `Order` of a run, which has a state. The loop
asks it for the problems of a step, shows it what came of all that were drawn (before any group is
left out), and keeps its state in checkpoints, so that a resumed run goes on as the uncut one would.

To add one: by rank a `window`, over arms `choose` and what it keeps; its row in CURRICULA, a section
in docs/curricula.md, and in tests/test_curricula.py an example worked out by hand, which the
contract suite compares. u is how much of a run is behind it, from 0 to 1."""

from typing import Annotated, ClassVar

from modicum.curricula.base import Curriculum, Measure, Order, permute
from modicum.curricula.base import Seen as Seen
from modicum.curricula.members import E2H, AdaRFT, Bandit, Pools, Prioritized
from modicum.curricula.orders import ByRank
from modicum.limits import Limits
from modicum.spec import build
from modicum.tasks.base import Task
from modicum.types import UserError


class UniformOrder(Order):
    """Problems 0, 1, 2, ... of the train split."""

    follows_length = False

    def metrics(self) -> dict[str, float]:
        return {}


class Uniform(Curriculum):
    """The task's own order: every problem, and every level, as likely as any other."""

    def order(self, task: Task, seed: int, measure: Measure) -> Order:
        return UniformOrder(task, seed)


class EasyToHard(ByRank):
    """The easiest part of the problems first, a harder part with every stage.

    If `cumulative` easier problems stay. Source: curriculum learning (Bengio et al. 2009)."""

    stages: Annotated[int, Limits(2, 100)] = 4
    cumulative: bool = True
    difficulty: str | None = None

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


class HardToEasy(EasyToHard):
    """The hardest part of the problems first: `easy_to_hard` with the ranks turned round."""

    hard_first: ClassVar[bool] = True


class Competence(ByRank):
    """The problems up to a rank that grows with every step, all of them alike.

    What is open at first must hold four batches. Source: Platanios et al. 2019, arXiv 1903.09848,
    with c0 = 0.01 and T by the length of a baseline."""

    guarded: ClassVar[bool] = True
    power: Annotated[float, Limits(0.1, 10)] = 2.0
    c0: Annotated[float, Limits(1e-4, 1)] = 0.1
    full_at: Annotated[float, Limits(1e-4, 1)] = 0.5
    difficulty: str | None = None

    def share(self, progress: float) -> float:
        """c(u), the share of the ranks that are open."""
        start = self.c0**self.power
        return min(1.0, (progress / self.full_at * (1 - start) + start) ** (1 / self.power))

    def window(self, progress: float, size: int) -> tuple[int, int]:
        return 0, max(1, int(self.share(progress) * size + 1e-9))


class Placebo(Curriculum):
    """A curriculum whose difficulties have changed places: `placebo(easy_to_hard(stages=2))`.

    Levels, or the problems of a fixed set, have the difficulty of another one, by a key of the seed.
    What it wins over `uniform` is no merit of the difficulty."""

    curriculum: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not parse(self.curriculum).directed:
            raise UserError.of("undirected", curriculum=self.curriculum)

    def __str__(self) -> str:
        return f"placebo({parse(self.curriculum)})"

    @property
    def difficulty(self) -> str | None:
        """The file that the other one goes by."""
        return getattr(parse(self.curriculum), "difficulty", None)

    def order(self, task: Task, seed: int, measure: Measure) -> Order:
        return parse(self.curriculum).order(task, seed, permute(task, seed, measure))


BY_DIFFICULTY = (Uniform, EasyToHard, HardToEasy, E2H, Competence, AdaRFT)
MEMBERS = (*BY_DIFFICULTY, Prioritized, Bandit, Pools, Placebo)
CURRICULA: dict[str, type] = {cls.name: cls for cls in MEMBERS}


def parse(text: str) -> Curriculum:
    """The curriculum that an expression such as `easy_to_hard(stages=4)` names."""
    return build("curriculum", text, CURRICULA)
