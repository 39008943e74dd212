"""What tasks with a fixed set of problems share: rows are read, checked, divided, held apart.

A task says where its rows come from (`Hub`, or a local `path`), which columns they need and
what one row says (`item`). The rest is here: bad rows are refused or skipped with a count,
ids are unique, each row goes into a split, and no problem of a later split (train, tune,
test) is in an earlier one. What a user should know of the loading is in `notes()`.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from modicum import answers
from modicum.spec import Spec
from modicum.tasks import finite, hub, rows
from modicum.tasks.base import check_split, split_of
from modicum.tasks.overlap import hold_out
from modicum.types import Grade, Problem, Split, UserError

BadRows = Literal["refuse", "skip"]
Role = Literal["train", "test", "hash"]
"""What a part is for: all of it is tested; or it is divided into train and tune (90/10 %); or
into train, tune and test (80/10/10 %), by a hash of the question."""
SHOWN_FAULTS = 3


@dataclass(frozen=True)
class Hub:
    """A data set on the hub: its name, its configuration, and what each part is for.

    `unread` are large columns that are not needed.
    """

    name: str
    parts: Mapping[str, Role]
    config: str | None = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowPart:
    """Rows that belong together. `origin` is what messages call them."""

    name: str
    role: Role
    origin: str
    records: Sequence[rows.Record]


@dataclass(frozen=True)
class Item:
    """What a row says. `key` identifies it within its part; None: its number does."""

    question: str
    answer: str
    difficulty: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    key: object = None


@dataclass(frozen=True)
class LeftOut:
    """A good row that is not asked for, and why."""

    reason: str


@dataclass(frozen=True)
class LoadedRows:
    """The problems by split, and what the user should know."""

    shelf: finite.Shelf
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DataTask(Spec, ABC):
    """Base of the tasks with a fixed set of problems; each declares `path` and `bad_rows`.

    With `path` None the rows come from `hub`. When `hub` has a train and a test part, a
    folder holds one `*train*` and one `*test*` file. A single file is for `file_role`.
    """

    hub: ClassVar[Hub | None] = None
    file_role: ClassVar[Role] = "hash"
    skippable: ClassVar[bool] = True
    """Whether `bad_rows` can be set."""

    if TYPE_CHECKING:  # fields of the tasks, whose order is theirs

        @property
        def path(self) -> str | None: ...

        @property
        def bad_rows(self) -> BadRows: ...

    def __post_init__(self) -> None:
        check_path(self.name, self.path)

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The problem at `index`: each comes once an epoch, in an order that `seed` gives."""
        return finite.pick(self, self._loaded().shelf, split, seed, index, self.advice())

    def size(self, split: Split) -> int | None:
        """How many problems the split holds."""
        return len(self._loaded().shelf[check_split(split)])

    def grade(self, problem: Problem, text: str) -> Grade:
        """Equality of the marked answer with the gold answer, symbolic where that is needed."""
        return answers.grade(text, problem.answer, symbolic=True)

    def notes(self) -> tuple[str, ...]:
        """What was skipped, left out or taken out on loading, one line each."""
        return self._loaded().notes

    def fingerprint(self) -> str:
        """A hash of all problems as they were read."""
        return finite.fingerprint(self._loaded().shelf)

    def found_in(self, folders: Sequence[Path]) -> Self:
        """The same task, its relative path looked for in these folders, in this order."""
        made = copy.copy(self)
        object.__setattr__(made, "folders", tuple(folders))  # no field: it changes no expression
        return made

    @property
    def _place(self) -> str:
        return finite.first(self, os.path.expanduser(str(self.path)), vars(self).get("folders", ()))

    @abstractmethod
    def columns(self) -> Sequence[tuple[str, ...]]:
        """The columns that must be there, each with its alternatives."""

    @abstractmethod
    def item(self, record: rows.Record) -> Item | LeftOut:
        """What a row says; UserError when it cannot be a problem."""

    def role(self, role: Role) -> Role:
        """What a part is for, when by itself it is for `role`."""
        return role

    def source(self) -> Hub | None:
        """The data set on the hub that the rows come from when there is no `path`."""
        return self.hub

    def advice(self) -> str:
        """What to do when a split is empty."""
        return "a hash of the question divides them: add problems"

    def part_name(self, path: str) -> str:
        """How the ids of the problems of a single file call it."""
        return Path(path).stem

    def check(self, parts: Sequence[RowPart]) -> None:
        """UserError when the rows as a whole are not what the task's arguments ask for."""

    def _files(self, path: str) -> list[tuple[str, Role, str]]:
        """(part, role, path) of each local file."""
        source = self.source()
        if source is not None and len(source.parts) == 2 and Path(path).is_dir():
            roles = source.parts.items()
            return [(part, role, rows.find(self.name, Path(path), part)) for part, role in roles]
        return [(self.part_name(path), self.file_role, path)]

    def _parts(self) -> list[RowPart]:
        if self.path is not None:
            files = self._files(self._place)
            return [RowPart(name, self.role(r), path, rows.read(path)) for name, r, path in files]
        source = self.source()
        assert source is not None, "without a hub there must be a path"
        roles = source.parts
        found = hub.read(self.name, source.name, source.config, list(roles), source.unread)
        return [RowPart(n, self.role(roles[n]), f"{source.name} {n}", r) for n, r in found.items()]

    def _loaded(self) -> LoadedRows:
        paths = [] if self.path is None else [path for _, _, path in self._files(self._place)]
        return _load(self, tuple((os.path.abspath(path), finite.stamp(path)) for path in paths))


@dataclass(frozen=True)
class HeldOut(DataTask):
    """Base of the sets that are there to be tested on: all is test, unless `split` divides it."""

    file_role: ClassVar[Role] = "test"

    if TYPE_CHECKING:

        @property
        def split(self) -> Literal["test", "hash"]: ...

    def role(self, role: Role) -> Role:
        """As `split` says."""
        return self.split

    def advice(self) -> str:
        """How a test set can be divided."""
        whole = "it is a test set, which split='hash' divides"
        return whole if self.split == "test" else super().advice()


def check_path(task: str, path: object, hub_too: bool = True) -> None:
    """UserError unless `path` may be one (or None, where the hub can be asked)."""
    if path is None and hub_too:
        return
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{task}: path must be a file{' or a folder' * hub_too}, not {path!r}")


def _split(question: str, role: Role) -> Split:
    split = split_of(question)
    if role == "test":
        return "test"
    # The tenth that would be tested stays with train: the official test set has that place.
    return "train" if role == "train" and split == "test" else split


@lru_cache(maxsize=8)
def _load(task: DataTask, stamps: tuple[tuple[str, tuple[int, int]], ...]) -> LoadedRows:
    """The problems of `task`; `stamps` make changed files new ones."""
    return load_once(task)


def load_once(task: DataTask) -> LoadedRows:
    """The problems of `task`, read anew."""
    parts = task._parts()
    for part in parts:
        for names in task.columns():
            rows.require_column(part.origin, part.records, *names)
    task.check(parts)
    placed: list[tuple[Split, Problem]] = []
    faults: list[str] = []
    left: Counter[str] = Counter()
    for part in parts:
        seen: dict[str, str] = {}
        for record in part.records:
            try:
                item = task.item(record)
                if isinstance(item, LeftOut):
                    left[item.reason] += 1
                    continue
                problem = _problem(f"{task.name}/{part.name}", record, item, seen)
            except UserError as error:
                text = str(error)
                faults.append(text if text.startswith(record.where) else f"{record.where}: {text}")
                continue
            placed.append((_split(problem.question, part.role), problem))
    total = sum(len(part.records) for part in parts)
    if faults and task.bad_rows == "refuse":
        raise UserError(_refusal(faults, total, task.skippable))
    kept, taken = hold_out(placed)
    notes = tuple(_notes(task.name, total, faults, left, taken))
    if not kept:
        raise UserError("; ".join((f"{task} has no problem left of {total} rows", *notes)))
    return LoadedRows(finite.divide(kept), notes)


def _problem(place: str, record: rows.Record, item: Item, seen: dict[str, str]) -> Problem:
    """The problem of a row; UserError when its gold is unusable or its id is another's."""
    answers.check_gold(item.answer)
    key = str(record.number if item.key in (None, "") else item.key)
    if key in seen:
        raise UserError(f"{record.where}: the id {key!r} is also that of {seen[key]}")
    seen[key] = record.where
    return Problem(f"{place}/{key}", item.question, item.answer, item.difficulty, item.data)


def _refusal(faults: list[str], total: int, skippable: bool) -> str:
    if len(faults) == 1:
        return faults[0] + " (bad_rows='skip' leaves it out)" * skippable
    shown = "; ".join(faults[:SHOWN_FAULTS])
    more = "; ..." if len(faults) > SHOWN_FAULTS else ""
    hint = "; bad_rows='skip' leaves them out" * skippable
    return f"{shown}{more} ({len(faults)} bad rows of {total}{hint})"


def _notes(
    name: str,
    total: int,
    faults: list[str],
    left: Counter[str],
    taken: list[tuple[Problem, Problem]],
) -> list[str]:
    said = [f"{name}: {count} of {total} rows left out: {why}" for why, count in left.items()]
    if faults:
        said.append(f"{name}: {len(faults)} of {total} rows are bad and skipped, as {faults[0]}")
    if taken:
        problem, twin = taken[0]
        said.append(
            f"{name}: {len(taken)} problems are also in a split that is held out, and are"
            f" left out where they would be trained on; the first: {problem.id} is {twin.id}"
        )
    return said
