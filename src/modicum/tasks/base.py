"""What every task has in common: seeded problems, disjoint splits, a grade.

A task is a frozen dataclass with `problem(split, seed, index)`, `size(split)` and
`grade(problem, text)`; one that reads something also has `fingerprint()`, a hash of what it has
read, so that a run knows when it changes. A `Procedural` task writes `make`. Its random numbers are derived from
the tuple (task, split, seed, index), so that neighbouring seeds have nothing in common, and a
problem goes into a split by a hash of its content, so that no problem is in two splits."""

import functools
import hashlib
import itertools
import random
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from modicum import answers
from modicum.spec import Spec, check
from modicum.types import SPLITS, Grade, Problem, Split, UserError

Level = int | tuple[int, ...]
"""A setting of a procedural task, or several values of it, each a level."""
SHARES: dict[Split, int] = {"train": 80, "tune": 10, "test": 10}  # percent of all problems
MAX_TRIES = 2000
MAX_LEVELS = 50


@runtime_checkable
class Task(Protocol):
    """A source of problems that can grade what a model answers to them."""

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The problem at `index` of `split` in the order that `seed` gives."""

    def size(self, split: Split) -> int | None:
        """How many different problems the split holds; None when it has no end."""

    def grade(self, problem: Problem, text: str) -> Grade:
        """The verdict on a completion, strict and lenient."""


def check_split(split: str) -> Split:
    """`split` itself if it is one of the three, else a UserError."""
    return check("the split", split, Split)


def stream(*key: object) -> random.Random:
    """A random generator that depends on every part of `key` and on nothing else."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))


def split_of(content: str) -> Split:
    """The split that a problem with this content belongs to, by hash (80/10/10 %)."""
    place = int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") % 100
    ends = itertools.accumulate(SHARES[split] for split in SPLITS)
    return next(split for split, end in zip(SPLITS, ends, strict=True) if place < end)


class Procedural(Spec, ABC):
    """Base of the tasks without an end, whose problems are made from random numbers. Of a setting
    in `graded` several values may be given (`terms=(2, 3, 4)`): levels. All are as often, in turn,
    and each has the problems that it has alone."""

    graded: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.levels()

    @functools.cache  # noqa: B019  a task is a value, and there are few
    def levels(self) -> tuple["Procedural", ...]:
        """The task at each of its levels, the easiest first; itself where it has one."""
        several = {n: v for n in self.graded if isinstance(v := getattr(self, n), tuple)}
        for name, values in several.items():
            if not 1 < len(set(values)) == len(values) <= MAX_LEVELS:
                wanted = f"must be two to {MAX_LEVELS} different levels"
                raise UserError(f"{self.name}: {name}={values} {wanted}")
        if not several:
            return (self,)
        each = (dict(zip(several, v, strict=True)) for v in itertools.product(*several.values()))
        made: list[Any] = [replace(self, **values) for values in each]  # type: ignore[type-var]
        return tuple(sorted(made, key=lambda level: level.problem("train", 0, 0).difficulty))

    @abstractmethod
    def make(self, rng: random.Random, split: Split) -> Problem | None:
        """A problem, or None for one that is no good; it may also be None outside `split`. Its
        `id`, the same for all problems that ask the same, decides the split."""

    def working(self, problem: Problem) -> str:
        """The way to the answer, for worked examples; empty where it is not known."""
        return ""

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The first at (split, seed, index) that a hash puts into `split`; UserError after
        2,000."""
        if len(levels := self.levels()) > 1:
            return levels[index % len(levels)].problem(split, seed, index // len(levels))
        rng = stream(self.origin(), check_split(split), seed, index)
        for _ in range(MAX_TRIES):
            if (made := self.make(rng, split)) is not None and split_of(made.id) == split:
                return replace(made, id=f"{self}/{split}/{seed}/{index}")
        raise UserError(f"{self} has no problem for the split {split!r}; make its numbers larger")

    def size(self, split: Split) -> int | None:
        return None

    def grade(self, problem: Problem, text: str) -> Grade:
        """Exact comparison of the marked answer; an expression such as 12*34 is no answer."""
        return answers.grade(text, problem.answer)

    def origin(self) -> str:
        """What the random numbers are derived from, beside (split, seed, index)."""
        return str(self)


def only(value: Level | None) -> int:
    """The value of a setting in a task of one level."""
    assert isinstance(value, int)
    return value
