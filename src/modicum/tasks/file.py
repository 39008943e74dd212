"""Problems from your own files: JSONL, JSON (a list of objects), CSV, TSV or Parquet.

Of one file a problem belongs to train, tune or test (80/10/10 %) by a hash of its question, so
that equal questions are never in two splits and added rows move no others. With a file or files
to test on, the rest is divided into train and tune (90/10 %).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modicum.spec import check
from modicum.tasks import forms, readers, rows
from modicum.tasks.dataset import BadRows, DataTask, check_path
from modicum.tasks.loading import Item, Reader, Role, RowPart, roles_of
from modicum.types import UserError

HINT = "; question= and answer= name columns, also inner ones such as reward_model.ground_truth"


@dataclass(frozen=True)
class FileTask(DataTask):
    """The rows of the file or folder `path`; `question` and `answer` name columns.

    A folder has `*train*` and `*test*` files, perhaps `*valid*` ones; `test` is a file of its
    own to test on. When `question` and `answer` are left at their defaults, rows in the forms
    of verl, TRL, ShareGPT, OpenAI and Alpaca are known by their columns. Answers may be texts,
    numbers, whole solutions with a marked answer, or lists, of which any is right, or with
    several='all' the whole set. `solution` names worked solutions; `difficulty` a number in
    every row (for a measured pass rate use 1 - rate, larger is harder). A row that cannot be a
    problem is a UserError with its line, or is skipped and counted with bad_rows='skip'.
    """

    name: ClassVar[str] = "file"
    own_rows: ClassVar[bool] = True
    path: str
    question: str = "question"
    answer: str = "answer"
    difficulty: str | None = None
    bad_rows: BadRows = "refuse"
    test: str | None = None
    solution: str | None = None
    several: forms.Several = "any"

    def __post_init__(self) -> None:
        check_path(self.name, self.path, hub_too=False)
        for field in ("question", "answer", "difficulty", "solution", "test"):
            value = getattr(self, field)
            needed = field in ("question", "answer") or value is not None
            if needed and (not isinstance(value, str) or not value.strip()):
                raise UserError(f"file: {field} must be a text that is not empty, not {value!r}")
        check("file: several", self.several, forms.Several)
        for path in (self.path, self.test or self.path):
            # A folder may have a dot in its name, but then hardly a word after it.
            named = readers.ending(path)
            if named[1:].isalpha() and named not in readers.READERS and not Path(path).is_dir():
                raise UserError(f"file: {path!r} must be a folder or end in {readers.ENDS}")

    def reader(self, part: RowPart) -> Reader:
        """By the columns that the arguments name, or by those of the rows."""
        form = forms.recognise(
            part.origin, part.records, self.question, self.answer, self.several, self.solution, HINT
        )
        level = self.difficulty
        if level:
            rows.require_column(part.origin, part.records, level)

        def item(record: readers.Record) -> Item:
            made = form.item(record)
            if not level:
                return made
            data = {name: value for name, value in made.data.items() if name != level}
            return Item(made.question, made.answer, rows.number(record, level), data)

        return Reader(item, form.note(part.records, (self.question, self.answer)))

    def _files(self, path: str) -> list[tuple[str, Role, str]]:
        parts = {"train": [path]}
        if Path(path).is_dir():
            parts = readers.find_all(self.name, Path(path))
        if self.test is not None:
            place = self._place(self.test)
            there = readers.find_all(self.name, Path(place)) if Path(place).is_dir() else {}
            parts["test"] = there.get("test", [place])
        roles = roles_of(parts)
        found: dict[str, tuple[str, Role, str]] = {}
        for part, files in parts.items():
            for place in files:
                name = Path(place).name
                name = f"{part}/{name}" if name in found else name
                found[name] = name, roles[part], place
        return list(found.values())
