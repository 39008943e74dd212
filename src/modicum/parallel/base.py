"""What a run asks of the processes that it is made of; `Team` is one alone, and answers at once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from modicum.config import TrainConfig
from modicum.engine.base import Sampler
from modicum.spec import Named
from modicum.types import Row

T = TypeVar("T")
U = TypeVar("U")


class Team(AbstractContextManager["Team"]):
    """The processes of a run, of which this is number `rank` of `size`; a context that ends with them.

    All processes call the same methods in the same order. What is told to others is JSON.
    """

    rank, size = 0, 1

    def __exit__(self, *_: object) -> None:
        """Part from the others."""

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and speaks to the user."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device of this process where a run asks for such a one."""
        return asked

    def sampler(self, own: Sampler) -> Sampler:
        """What gives the completions of all problems, drawn by every process's own sampler."""
        return own

    def settings(self, make: Callable[[], TrainConfig]) -> TrainConfig:
        """The settings that the first process makes."""
        return make()

    # Work that is shared -----------------------------------------------------------------

    def owns(self, number: int) -> bool:
        """Whether the group with this number in its step is drawn and trained here."""
        return number % self.size == self.rank

    def mine(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of the groups of this process."""
        return [row for row in rows if self.owns(row.group)]

    def each(self, items: Sequence[T], work: Callable[[T], U]) -> list[U]:
        """What `work` gives for every item, each in one process."""
        found = [[n, work(item)] for n, item in enumerate(items) if self.owns(n)]
        told: dict[int, U] = dict(self.lines(found))
        return [told[number] for number in range(len(items))]

    def spread(self, rows: Sequence[Row], found: Sequence[U]) -> list[U]:
        """What each process has `found` for its own rows, in the order of all rows."""
        numbers = [number for number, row in enumerate(rows) if self.owns(row.group)]
        told: dict[int, U] = dict(self.lines([*zip(numbers, found, strict=True)]))
        return [told[number] for number in range(len(rows))]

    # What all are told -------------------------------------------------------------------

    def lines(self, rows: Sequence[Any]) -> list[Any]:
        """The rows of all processes, in the order of these."""
        return list(rows)

    def told(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, where alone it is called."""
        (found,) = self.lines([make()] if self.first else [])
        return found  # type: ignore[no-any-return]

    def most(self, value: U) -> U:
        """The largest value of all processes."""
        return max(self.lines([value]))  # type: ignore[no-any-return]

    def summed(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The sums of all processes, some of which may have none of a name, added up."""
        found: dict[str, float] = {}
        for told in self.lines([dict(sums)]):
            found |= {name: found.get(name, 0.0) + value for name, value in told.items()}
        return found

    # Tensors -----------------------------------------------------------------------------

    def reduce(self, tensors: Sequence[Tensor]) -> None:
        """Let the gradients of these become their sums over all processes, where any has one."""

    def prove(self, when: str, of: Callable[[], Mapping[str, Tensor]]) -> str:
        """Say that the tensors `of` gives are the same in all processes; RunStopped with the name
        of one that is not."""
        return ""


class Parallel(Named, ABC):
    """Settings that begin a team."""

    @abstractmethod
    def begin(self, device: str) -> Team:
        """The team of this process in a run on such a device; UserError where there is none."""


@dataclass(frozen=True)
class Alone(Parallel):
    """One process, whoever has started it."""

    name = "none"

    def begin(self, device: str) -> Team:
        return Team()
