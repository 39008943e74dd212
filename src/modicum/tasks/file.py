"""Problems from your own file: JSONL, JSON (a list of objects), CSV, TSV or Parquet.

A problem belongs to train, tune or test (80/10/10 %) by a hash of its question, so that
equal questions are never in two splits and added rows move no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from modicum import answers
from modicum.spec import Spec
from modicum.tasks import finite, rows
from modicum.tasks.base import check_split, split_of
from modicum.types import Grade, Problem, Split, UserError

QUESTION_COLUMNS = ("question", "problem", "prompt")


@dataclass(frozen=True)
class FileTask(Spec):
    """The rows of the file `path`: `question`, `answer`, and `difficulty` name its columns.

    When `question` is left at its default, the first of the columns question, problem and
    prompt is taken. Answers may be texts or numbers; `difficulty`, when it is named, must
    be a number in every row. A row that cannot be a problem is a UserError with its line.
    """

    name: ClassVar[str] = "file"
    path: str
    question: str = "question"
    answer: str = "answer"
    difficulty: str | None = None

    def __post_init__(self) -> None:
        for field in ("path", "question", "answer"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"file: {field} must be a text that is not empty, not {value!r}")
        if self.difficulty is not None and not self.difficulty:
            raise UserError("file: difficulty must name a column or be left out")
        if Path(self.path).suffix.lower() not in rows.READERS:
            raise UserError(f"file: {self.path!r} must end in one of {', '.join(rows.READERS)}")

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The problem at `index`: each comes once an epoch, in an order that `seed` gives."""
        return finite.pick(self, self._shelf(), split, seed, index)

    def size(self, split: Split) -> int | None:
        """How many problems the split holds."""
        return len(self._shelf()[check_split(split)])

    def grade(self, problem: Problem, text: str) -> Grade:
        """Equality of the marked answer with the one in the file."""
        return answers.grade(text, problem.answer)

    def _shelf(self) -> finite.Shelf:
        return _load(
            self.path, self.question, self.answer, self.difficulty, finite.stamp(self.path)
        )


@lru_cache(maxsize=16)
def _load(
    path: str, question: str, answer: str, difficulty: str | None, stamp: tuple[int, int]
) -> finite.Shelf:
    """The problems of the file by split; `stamp` makes a changed file a new one."""
    records = rows.read(path)
    if question == QUESTION_COLUMNS[0]:
        known = rows.columns(records)
        question = next((name for name in QUESTION_COLUMNS if name in known), question)
    for column in (question, answer, *([difficulty] if difficulty else [])):
        rows.require_column(path, records, column)
    problems: list[tuple[Split, Problem]] = []
    for record in records:
        asked = rows.text(record, question)
        gold = rows.answer(record, answer)
        level = rows.number(record, difficulty) if difficulty else None
        place = f"file/{Path(path).name}/{record.number}"
        problems.append((split_of(asked), Problem(place, asked, gold, level)))
    return finite.divide(problems)
