"""What every curriculum has in common: its order, and the difficulty that it goes by."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from modicum.runs import file_hash, read_object
from modicum.spec import Spec
from modicum.tasks.base import Task, stream
from modicum.types import Problem, UserError

RANKED = 10_000  # problems of a split that has an end
SAMPLED = 2_000  # problems of one that has none
Measure = Callable[[Problem], float | None]
"""The difficulty of a problem; None where it is not known."""


class Seen(NamedTuple):
    """What came of one problem that was drawn.
    `rewards` are the totals of its completions, NaN for no verdict. `right` of `known`
    verdicts of the term `accuracy` were full; both are 0 where the reward has no such term."""

    problem: Problem
    rewards: tuple[float, ...]
    right: int
    known: int


class Order:
    """The problems of one run: those of the task's own order that belong to what is asked for."""

    follows_length: bool = True
    """Whether `progress` matters, so that a longer run draws other problems from its first step."""
    learns: bool = False  # whether it goes by verdicts of the reward's term `accuracy`
    measured: "PassRates | None" = None  # what it goes by, where that was measured before the run

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.drawn = 0
        self.shown: list[float] = []

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

    def look(self, count: int, steps: int) -> list[str]:
        """What to know before so many steps of `count` problems; UserError if it cannot be."""
        return []

    def observe(self, seen: Sequence[Seen]) -> None:
        """Hear what came of the problems of a step, of all that were drawn."""
        self.shown = [p.difficulty for p in (s.problem for s in seen) if p.difficulty is not None]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        measured = {"measured": self.measured.sha256} if self.measured else {}
        return {"drawn": self.drawn, **measured}

    def load(self, state: Mapping[str, Any]) -> None:
        """Set what `state` gave; ValueError for what is none."""
        self.drawn = as_count(state["drawn"])
        if self.measured and state["measured"] != self.measured.sha256:
            raise ValueError(f"{self.measured.path} has changed since")

    def metrics(self) -> dict[str, float]:
        """What the last step's problems were, by names that begin with `curriculum/`."""
        return {"curriculum/difficulty": sum(self.shown) / len(self.shown)} if self.shown else {}


def as_count(value: Any, below: float = float("inf")) -> int:
    """`value` if it is a whole number from 0, ValueError else."""
    if type(value) is not int or not 0 <= value < below:
        raise ValueError(f"{value!r} is no count")
    return value


class Curriculum(Spec, ABC):
    """Chooses the problems of every step.
    One with a field `difficulty` goes by a file of `modicum difficulty` where it names one."""

    directed: ClassVar[bool] = False
    """Whether it matters to it which of two problems is the harder one."""

    def begin(self, task: Task, seed: int) -> Order:
        """The order of a run on `task`; UserError where the task does not fit."""
        path = getattr(self, "difficulty", None)
        rates = PassRates.read(Path(path)) if path else None
        measure: Measure = rates or (lambda problem: problem.difficulty)
        order = self.order(task, seed, measure)
        order.measured = rates
        return order

    @abstractmethod
    def order(self, task: Task, seed: int, measure: Measure) -> Order:
        """The order of a run by this measure of difficulty."""


class PassRates(NamedTuple):
    """What `modicum difficulty` measured: `wrong`, the share of a base's answers that is wrong, by
    problem or by level of an endless task, and what that took."""

    path: Path
    sha256: str
    base: Mapping[str, str]
    spent: dict[str, int]  # completions and tokens
    wrong: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> "PassRates":
        """What is in a file; UserError where that is something else."""
        found = read_object(path := path.expanduser())
        try:
            wrong = {name: 1 - right / of for name, (right, of) in found["rates"].items()}
            count = sum(int(of) for _, of in found["rates"].values())
            spent = {"completions": count, "tokens": as_count(found["tokens"])}
            if not all(0 <= share <= 1 for share in wrong.values()):
                raise ValueError("more right answers than answers")
            return cls(path, file_hash(path), dict(found["base"]), spent, wrong)
        except (LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            raise UserError(f"{path} is no file that `modicum difficulty` has written") from None

    def __call__(self, problem: Problem) -> float | None:
        """Of a problem, or of its level, whose problems are called `LEVEL/split/seed/index`."""
        return self.wrong.get(problem.id, self.wrong.get(problem.id.rsplit("/", 3)[0]))


def permute(task: Task, seed: int, measure: Measure) -> Measure:
    """`measure` with difficulties that have changed places by a key: of levels, or of problems."""
    turns = turns_of(task)
    found = {p.id: d for p in pool(task, seed, turns) if (d := measure(p)) is not None}
    values = list(found.values())
    places: list[Any] = list(values) if turns > 1 else list(found)
    stream(seed, "placebo").shuffle(values)
    moved = dict(zip(places, values, strict=True))

    def permuted(problem: Problem) -> float | None:
        if (known := measure(problem)) is None:
            return None
        place = known if turns > 1 else problem.id
        # Or it is not ranked.
        return moved[place] if place in moved else stream(seed, problem.id).choice(values)

    return permuted


def turns_of(task: Task) -> int:
    """How many levels an endless task has, which come in turn; 1 where it has none."""
    levels = getattr(task, "levels", None)
    return len(levels()) if callable(levels) else 1


def pool(task: Task, seed: int, turns: int = 1) -> list[Problem]:
    """The problems that are ranked: all of a split, or the first of a long or endless one; one of
    each of several levels."""
    size = task.size("train")
    count = turns if turns > 1 else SAMPLED if size is None else min(size, RANKED)
    return [task.problem("train", seed, index) for index in range(count)]


def rated(
    name: str, task: Task, problems: Sequence[Problem], measure: Measure, least: int = 2
) -> tuple[dict[str, float], list[str]]:
    """Known difficulties, and what to tell; UserError for fewer than `least`, or all the same."""
    every = {p.id: " ".join(p.question.split()) for p in problems}
    found = {p.id: d for p in problems if (d := measure(p)) is not None}
    if len(found) < least:
        some = f"of {len(problems)} problems of {task} {len(found)} have one"
        raise UserError(f"{name} needs at least {least} problems with a difficulty; {some}")
    ranked = sorted({(d, every[place]) for place, d in found.items()})
    if ranked[0][0] == ranked[-1][0]:
        raise UserError.of("same_difficulty", name=name, task=task, level=ranked[0][0])
    ends = ranked[:3], ranked[:-4:-1]
    low, high = ("; ".join(f"{text:.48} ({d:g})" for d, text in some) for some in ends)
    lacking = len(every) - len(found)
    told = [f"{name}: the easiest of {len(found)} problems: {low}", f"{name}: the hardest: {high}"]
    told += [f"{name}: {lacking} problems have no difficulty, and come last"] * (lacking > 0)
    return found, told
