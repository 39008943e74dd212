"""Problems from your own file: JSONL, JSON (a list of objects), CSV, TSV or Parquet.

A problem belongs to train, tune or test (80/10/10 %) by a hash of its question, so that
equal questions are never in two splits and added rows move no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modicum.tasks import rows
from modicum.tasks.dataset import BadRows, DataTask, Item, check_path
from modicum.types import UserError

QUESTION_COLUMNS = ("question", "problem", "prompt")


@dataclass(frozen=True)
class FileTask(DataTask):
    """The rows of the file `path`: `question`, `answer`, and `difficulty` name its columns.

    When `question` is left at its default, the first of the columns question, problem and
    prompt is taken. Answers may be texts or numbers; `difficulty`, when it is named, must
    be a number in every row (a measured pass rate, say: use 1 - rate, larger is harder). A
    row that cannot be a problem is a UserError with its line, or is skipped and counted
    with bad_rows='skip'.
    """

    name: ClassVar[str] = "file"
    path: str
    question: str = "question"
    answer: str = "answer"
    difficulty: str | None = None
    bad_rows: BadRows = "refuse"

    def __post_init__(self) -> None:
        check_path(self.name, self.path, hub_too=False)
        for field in ("question", "answer"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"file: {field} must be a text that is not empty, not {value!r}")
        if self.difficulty is not None and not self.difficulty:
            raise UserError("file: difficulty must name a column or be left out")
        if Path(self.path).suffix.lower() not in rows.READERS:
            raise UserError(f"file: {self.path!r} must end in one of {', '.join(rows.READERS)}")

    def part_name(self, path: str) -> str:
        """The file's name with its ending."""
        return Path(path).name

    def columns(self) -> Sequence[tuple[str, ...]]:
        """Those that the arguments name."""
        named = (self._questions(), (self.answer,))
        return (*named, (self.difficulty,)) if self.difficulty else named

    def item(self, record: rows.Record) -> Item:
        """The row as it stands."""
        question = rows.text(record, *self._questions())
        level = rows.number(record, self.difficulty) if self.difficulty else None
        return Item(question, rows.answer(record, self.answer), level)

    def _questions(self) -> tuple[str, ...]:
        return QUESTION_COLUMNS if self.question == QUESTION_COLUMNS[0] else (self.question,)
