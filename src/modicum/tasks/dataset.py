"""What tasks with a fixed set of problems share: rows are read, checked, divided, held apart.

A task says where its rows come from (`Hub`, or a local `path`) and how they are read (`reader`).
`loading` makes problems of them."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

from modicum import answers
from modicum.spec import Spec
from modicum.tasks import readers, rows
from modicum.tasks.base import check_split, stream
from modicum.tasks.loading import LoadedRows, Reader, Role, RowPart, accepted, load_once, roles_of
from modicum.types import Grade, Problem, Split, UserError

BadRows = Literal["refuse", "skip"]
Columns = Sequence[tuple[str, ...]]


class Hub(NamedTuple):
    """A data set on the hub, what each part is for, and large columns that are not needed
    (`unread`)."""

    name: str
    parts: Mapping[str, Role]
    config: str | None = None
    unread: tuple[str, ...] = ()


class DataTask(Spec, ABC):
    """Base of the tasks with a fixed set of problems: of `path`, or with None of `hub`."""

    hub: ClassVar[Hub | None] = None
    skippable: ClassVar[bool] = True  # whether `bad_rows` can be set
    own_rows: ClassVar[bool] = False
    """Whether they are the user's: copies are taken once, and contradictions are bad rows."""

    path: str | None = None
    bad_rows: BadRows = field(default="refuse", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_path(self.name, self.path)

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The problem at `index`: each comes once an epoch, in an order that `seed` gives;
        UserError when the split is unknown or holds none."""
        shelf = self._kept.shelf
        if not (problems := shelf[check_split(split)]):
            held = ", ".join(f"{len(found)} {name}" for name, found in shelf.items())
            held = f"it holds {sum(map(len, shelf.values()))} ({held}); {self.advice()}"
            raise UserError(f"{self} has no problem for the split {split!r}: {held}")
        epoch, place = divmod(index, len(problems))
        return problems[_order(self.name, split, seed, epoch, len(problems))[place]]

    def size(self, split: Split) -> int | None:
        return len(self._kept.shelf[check_split(split)])

    def grade(self, problem: Problem, text: str) -> Grade:
        """Equality of the marked answer with the gold answer, symbolic where that is needed."""
        return answers.grade(text, accepted(problem), symbolic=True)

    def notes(self) -> tuple[str, ...]:
        """What was skipped, left out or taken out on loading, one line each."""
        return self._kept.notes

    def fingerprint(self) -> str:
        """A hash of all problems as they were read, those that are left out later as well."""
        digest = hashlib.sha256()
        for split, p in ((at, p) for at, some in self._loaded().shelf.items() for p in some):
            row = [split, p.id, p.question, p.answer, p.difficulty, dict(p.data)]
            digest.update(json.dumps(row, default=repr).encode() + b"\n")
        return digest.hexdigest()

    def found_in(self, folders: Sequence[Path]) -> Self:
        """The same task, its relative path looked for in these folders, in this order."""
        return self.having(folders=tuple(folders))

    def without(self, ids: Collection[str], note: str) -> Self:
        """The same task without these problems, and with a note that says so."""
        shelf = self._kept.shelf.items()
        rest = {split: tuple(p for p in some if p.id not in ids) for split, some in shelf}
        return self.having(kept=LoadedRows(rest, (*self.notes(), note)))

    @property
    def _kept(self) -> LoadedRows:
        return vars(self).get("kept") or self._loaded()

    def _place(self, path: str) -> str:
        """Where a file or folder is; UserError when a relative one is in none of the folders."""
        path, folders = os.path.expanduser(path), vars(self).get("folders", ())
        if found := [place for folder in folders if (place := folder / path).exists()]:
            return str(found[0])
        if folders and not Path(path).is_absolute():
            looked = " and not in ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
            raise UserError(f"there is no file {path}, which {self} reads: not in {looked}")
        return path

    @abstractmethod
    def reader(self, part: RowPart) -> Reader:
        """How the rows of a part are read, and a note on that."""

    def role(self, role: Role) -> Role:
        """What a part is for, when by itself it is for `role`."""
        return role

    def source(self) -> Hub | None:
        """The data set on the hub that the rows come from when there is no `path`."""
        return self.hub

    def advice(self) -> str:
        """What to do when a split is empty."""
        return "a hash of the question divides them: add problems"

    def _files(self) -> list[tuple[str, Role, str]]:
        """(part, role, path) of each local file; their names are what ids call them."""
        if self.path is None:
            return []
        if not Path(place := self._place(self.path)).is_dir():
            return [(self._file_name(place), "hash", place)]
        parts, source = readers.find(self.name, Path(place)), self.source()
        # The official test set is the split test: without it there is none.
        if lacking := {*(source.parts if source else ())} - parts.keys():
            raise UserError(f"{self.name}: {place} has no *{min(lacking)}* file")
        roles, one = roles_of(parts), {part for part, files in parts.items() if len(files) == 1}
        files = [(part, file) for part, some in parts.items() for file in some]
        return [(p if p in one else self._file_name(f), roles[p], f) for p, f in files]

    def _file_name(self, path: str) -> str:
        """How the ids of the problems of a file call it: with its ending if the user named it."""
        return Path(path).name if self.own_rows else Path(path).stem

    def _parts(self) -> list[RowPart]:
        if self.path is not None:
            return [RowPart(n, self.role(r), p, readers.read(p)) for n, r, p in self._files()]
        source = self.source()
        assert source is not None, "without a hub there must be a path"
        roles = source.parts
        found = readers.from_hub(self.name, source.name, source.config, list(roles), source.unread)
        return [RowPart(n, self.role(roles[n]), f"{source.name} {n}", r) for n, r in found.items()]

    def _loaded(self) -> LoadedRows:
        return _load(self, tuple(_stamp(path) for _, _, path in self._files()))


class ColumnTask(DataTask):
    """Base of the data sets whose columns are known."""

    columns: ClassVar[Columns]
    """Those that must be there, each with its alternatives."""

    def reader(self, part: RowPart) -> Reader:
        for names in self.columns:
            rows.require_column(part.origin, part.records, *names)
        return self.item, ""

    @abstractmethod
    def item(self, record: readers.Record) -> Problem:
        """What a row says; UserError when it cannot be a problem, LeftOut when it is not asked for."""


class HeldOut(ColumnTask):
    """Base of the sets that are there to be tested on: all is test, unless `split` divides it."""

    split: Literal["test", "hash"] = field(default="test", kw_only=True)

    def role(self, role: Role) -> Role:
        return self.split

    def advice(self) -> str:
        divide = "it is a test set, which split='hash' divides"
        return divide if self.split == "test" else super().advice()


def check_path(task: str, path: object, hub_too: bool = True) -> None:
    """UserError unless `path` may be one (or None, where the hub can be asked)."""
    right = path.strip() if isinstance(path, str) else path is None and hub_too
    if not right:
        raise UserError(f"{task}: path must be a file{' or a folder' * hub_too}, not {path!r}")


_load = lru_cache(maxsize=8)(lambda task, stamps: load_once(task))  # stamps: changed files are new


@lru_cache(maxsize=32)
def _order(name: str, split: str, seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """A permutation for an epoch; of the task's name, so that a moved file keeps its order."""
    order = list(range(count))
    stream(name, split, seed, epoch).shuffle(order)
    return tuple(order)


def _stamp(path: str) -> tuple[str, int, int]:
    """Where it is, when it was changed last, its size: when one differs, it is read again."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path!r} cannot be read: {error}") from None
    return os.path.abspath(path), status.st_mtime_ns, status.st_size
