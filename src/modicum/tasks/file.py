"""Problems of your own: JSONL, JSON (a list of objects), CSV, TSV, Parquet, a hub data set, a list.

docs/tasks.md says how they are divided into splits. The rows of a list (`GivenTask`) are taken as
JSON writes them, so that a run folder keeps exactly what was trained on."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from modicum.runs import Run, read_lines
from modicum.spec import check
from modicum.tasks import forms, readers, rows
from modicum.tasks.dataset import DataTask, check_path
from modicum.tasks.loading import Reader, Role, RowPart, accepted, roles_of
from modicum.tasks.readers import Record
from modicum.types import SPLITS, Problem, UserError

HINT = "; question= and answer= name columns, also inner ones such as reward_model.ground_truth"


class FileTask(DataTask):
    """The rows of the file or folder `path`; `question` and `answer` name columns.

    `test` is a file of its own to test on, `solution` names worked solutions, `difficulty` a column
    of numbers, larger ones are harder, or easier as in 'solve_rate:desc'. Of several answers any is
    right, or with several='all' the whole set. A row that cannot be a problem is a UserError with
    its line, or is skipped and counted with bad_rows='skip'. docs/tasks.md"""

    name: ClassVar[str] = "file"
    aliases: ClassVar[Mapping[str, str]] = {"train": "path"}
    of_files: ClassVar[bool] = True
    own_rows: ClassVar[bool] = True
    path: str = field()
    question: str = "question"
    answer: str = "answer"
    difficulty: str | None = None
    test: str | None = None
    solution: str | None = None
    several: forms.Several = "any"

    def __post_init__(self) -> None:
        check_path(self.name, self.path, hub_too=False)
        check(f"{self.name}: several", self.several, forms.Several)
        for name in ("question", "answer", "difficulty", "solution", "test"):
            value = getattr(self, name)
            needed = name in ("question", "answer") or value is not None
            if needed and (not isinstance(value, str) or not value.strip()):
                what = f"{self.name}: {name} must be a text that is not empty"
                raise UserError(f"{what}, not {value!r}")
        if readers.ending(self.question) in readers.READERS:
            raise UserError(f"file: {self.question!r} is no column; a file to test on is test=...")
        for path in (self.path, self.test or self.path) if self.of_files else ():
            # A folder may have a dot in its name, but then hardly a word after it.
            named = readers.ending(path)
            if named[1:].isalpha() and named not in readers.READERS and not Path(path).is_dir():
                raise UserError(f"file: {path!r} must be a folder or end in {readers.ENDS}")

    def reader(self, part: RowPart) -> Reader:
        named = self.question, self.answer, self.solution, self.difficulty
        form = forms.recognise(part.origin, part.records, *named, self.several, HINT)
        return form.item, form.note

    def advice(self) -> str:
        return f"{super().advice()}, or name others to test on with test="

    def _files(self) -> list[tuple[str, Role, str]]:
        found = super()._files()
        if self.test is None:
            return found
        if Path(found[0][2]) != Path(self._place(self.path)):
            raise UserError(f"file: {self.path} is a folder, whose *test* files are what is tested")
        # Its name may be that of the other file, in another folder.
        test = self._place(self.test)
        return [(found[0][0], "train", found[0][2]), (f"test/{Path(test).name}", "test", test)]


class HubTask(FileTask):
    """The rows of the data set `path` on the Hugging Face hub, such as 'openai/gsm8k'.

    Or of a folder that the library `datasets` has saved or reads. `config` names a configuration;
    `train` and `test` name parts. Columns and all else are as in `file(...)`."""

    name: ClassVar[str] = "hub"
    aliases: ClassVar[Mapping[str, str]] = {}
    of_files: ClassVar[bool] = False
    config: str | None = None
    train: str | None = None

    def _files(self) -> list[tuple[str, Role, str]]:
        return []

    def _parts(self) -> list[RowPart]:
        place = self._place(self.path) if Path(self.path).expanduser().is_dir() else self.path
        found = readers.from_hub(self.name, place, self.config, None)
        given = {"train": self.train, "test": self.test}
        named = {name: role for role, name in given.items() if name}
        for name in [name for name in found if name not in named]:
            roles = readers.parts_of(name) or [""] * (len(found) == 1)
            if len(roles) == 1 and not given.get(roles[0]):
                named[name] = roles[0]
        told = list(named.values())
        if named.keys() - found.keys() or len(set(told)) < len(told) or not {"", "train"} & {*told}:
            raise UserError.of("hub_parts", path=self.path, parts=", ".join(found))
        told_as = {name: roles_of(told)[role] for name, role in named.items()}
        where = {name: f"{self.path} {name}".strip() for name in named}
        return [RowPart(n or "rows", role, where[n], found[n]) for n, role in told_as.items()]


FILES: dict[str, str] = {"": "problems.jsonl"} | {part: f"problems-{part}.jsonl" for part in SPLITS}
SHOWN = 8  # characters of the hash, in names


class GivenTask(DataTask):
    """Problems of the caller's own; answers are compared as those of `file(...)` are."""

    name: ClassVar[str] = "given"
    skippable: ClassVar[bool] = False
    own_rows: ClassVar[bool] = True
    path: None = field(default=None, init=False, repr=False)
    sha256: str
    parts: Mapping[str, Sequence[dict[str, Any]]] = field(compare=False, repr=False)
    """The rows of the whole ("") or of train and test."""

    @classmethod
    def of(cls, problems: Any) -> Self:
        """The task of a list of problems, or of {"train": ..., "test": ...}."""
        named = dict(problems) if isinstance(problems, Mapping) else {"": problems}
        if "validation" in named:
            named["tune"] = named.pop("validation")
        if (wrong := [part for part in named if part not in FILES]) or not named:
            what = f"{type(problems).__name__} with {next(iter(wrong), 'nothing')!r}"
            raise UserError.of("no_problems", what=what)
        return cls.made({part: _rows(part, named[part]) for part in FILES if part in named})

    @classmethod
    def made(cls, parts: Mapping[str, Sequence[dict[str, Any]]]) -> Self:
        """The task of rows that JSON holds."""
        digest = hashlib.sha256()
        for part, entries in parts.items():
            digest.update(json.dumps([part, entries], ensure_ascii=False).encode())
        return cls(digest.hexdigest(), parts)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The task that `write` left in a run folder, if it did."""
        files = {part: folder / name for part, name in FILES.items() if (folder / name).is_file()}
        return cls.made({part: read_lines(path) for part, path in files.items()}) if files else None

    def write(self, run: Run) -> None:
        """Keep the rows in the folder of a run; `file(...)` reads them too."""
        for part, entries in self.parts.items():
            run.write_lines(FILES[part], entries)

    @property
    def summary(self) -> dict[str, Any]:
        """What identifies the problems of a run that no expression names."""
        files, count = [FILES[part] for part in self.parts], sum(map(len, self.parts.values()))
        return {"files": files, "count": count, "sha256": self.sha256}

    def __str__(self) -> str:
        count = self.summary["count"]
        return f"{count} problem{'s' * (count != 1)} ({self.sha256[:SHOWN]})"

    def reader(self, part: RowPart) -> Reader:
        """As of a file; a number as difficulty and an id are taken."""
        form = forms.recognise(part.origin, part.records)

        def item(record: Record) -> Problem:
            made, level = form.item(record), record.values.get("difficulty")
            data = dict(made.data)
            number = isinstance(level, int | float) and not isinstance(level, bool)
            if number:
                del data["difficulty"]
            # A missing one is NaN in tables of pandas.
            known = float(level) if number and math.isfinite(level) else None
            return replace(made, id=rows.key(record, "id"), difficulty=known, data=data)

        return item, form.note

    def advice(self) -> str:
        return f"{super().advice()}, or give {{'train': [...], 'test': [...]}}"

    def _parts(self) -> list[RowPart]:
        found, roles = [], roles_of(self.parts)
        for part, entries in self.parts.items():
            where = f"{_origin(part)}, number"
            records = [Record(f"{where} {n}", n, row) for n, row in enumerate(entries, 1)]
            found.append(RowPart(part or "problems", roles[part], _origin(part), records))
        return found


def _origin(part: str) -> str:
    return f"the problems of {part!r}" if part else "the list of problems"


def _rows(part: str, entries: Iterable[Any]) -> list[dict[str, Any]]:
    if hasattr(entries, "iterrows"):  # a table of pandas
        entries = cast(Any, entries).to_dict("records")
    try:
        found = [_row(f"{_origin(part)}, number {n}", e) for n, e in enumerate(entries, start=1)]
    except TypeError:
        kind = type(entries).__name__
        raise UserError(f"task: must be an expression, a task or a list, not {kind}") from None
    if not found:
        raise UserError(f"task: {_origin(part)} is empty")
    return found


def _row(where: str, entry: Any) -> dict[str, Any]:
    """A problem as an object of JSON."""
    match entry:
        case Problem():
            row = {**entry.data, "id": entry.id, "question": entry.question}
            golds = accepted(entry)
            answer = list(golds) if len(golds) > 1 else entry.answer
            row |= {"answer": answer, "difficulty": entry.difficulty}
        case Mapping():
            row = dict(entry)
        case _:
            raise UserError(f"{where}: must be a dict or a Problem, not {type(entry).__name__}")
    try:
        return json.loads(json.dumps(row, ensure_ascii=False, default=_plain).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: JSON cannot hold it ({error})") from None


def _plain(value: Any) -> Any:
    """A number or array of numpy as Python's own."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"a {type(value).__name__}")
    return value.tolist()
