"""MATH: competition problems in five levels (Hendrycks et al. 2021, arXiv:2103.03874; MIT).

`math` has the official sets: the 5,000 test problems are the split test, the 7,500 train
problems are divided into train and tune (90/10 %) by a hash of the question. `math500` is
the sample of 500 test problems of Lightman et al. (2023, arXiv:2305.20050), all of it test.
`difficulty` is the level.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modicum import answers
from modicum.spec import nearest
from modicum.tasks import rows
from modicum.tasks.dataset import ColumnTask, HeldOut, Hub, Reader, RowPart
from modicum.tasks.loading import LeftOut
from modicum.tasks.readers import Record
from modicum.types import Problem, UserError

LEVELS = (1, 2, 3, 4, 5)
LEVEL = re.compile(r"(?:Level )?([1-5])", re.ASCII)
UNKNOWN = "Level ?"  # stands in two rows of the original train set
SUBJECTS = ("subject", "type")


@dataclass(frozen=True)
class MathTask(ColumnTask):
    """What `math` and `math500` share: columns, levels, subjects."""

    columns: ClassVar[Sequence[tuple[str, ...]]] = (("problem",), ("answer", "solution"))
    levels: tuple[int, ...] = ()
    subject: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [level for level in self.levels if level not in LEVELS]
        if wrong:
            raise UserError(f"{self.name}: levels are 1 to 5, not {wrong[0]}")

    def reader(self, part: RowPart) -> Reader:
        """A level or subject is needed only when it is asked for."""
        made, records = super().reader(part), part.records
        if self.levels:
            rows.require_column(part.origin, records, "level")
        if self.subject:
            rows.require_column(part.origin, records, *SUBJECTS)
            known = {
                str(r.values[name]) for r in records for name in SUBJECTS if r.values.get(name)
            }
            if _plain(self.subject) not in map(_plain, known):
                raise UserError(
                    f"{self.name}: no subject {self.subject!r}; {nearest(self.subject, known)}"
                )
        return made

    def item(self, record: Record) -> Problem:
        """The gold is `answer` if there is one, else the last box of `solution`."""
        question, values = rows.text(record, "problem"), record.values
        solution = rows.text(record, "solution") if values.get("solution") is not None else None
        level = _level(record)
        if "answer" in values:
            gold = rows.answer(record, "answer")
        elif (gold := answers.gold_from_box(rows.text(record, "solution"))) is None:
            raise UserError(r"there is no \boxed{...} that is closed in 'solution'")
        if self.levels and level not in self.levels:
            raise LeftOut(f"their level is none of {', '.join(map(str, self.levels))}")
        subject = next((values[name] for name in SUBJECTS if values.get(name)), None)
        if self.subject and _plain(str(subject)) != _plain(self.subject):
            raise LeftOut(f"their subject is not {self.subject!r}")
        data = {"solution": solution, "subject": subject}
        data = {name: value for name, value in data.items() if value is not None}
        difficulty = None if level is None else float(level)
        return Problem(rows.key(record, "unique_id"), question, gold, difficulty, data)


def _plain(subject: str) -> str:
    return re.sub(r"[^a-z]+", " ", subject.lower().replace("&", "and")).strip()


def _level(record: Record) -> int | None:
    """The level of a row, from 3, "3" or "Level 3"; None when it is not known."""
    value = record.values.get("level")
    if value is None or value == UNKNOWN:
        return None
    match = LEVEL.fullmatch(str(value).strip())
    if match is None or isinstance(value, bool):
        raise UserError(f"'level' must be 1 to 5 or such as 'Level 3', not {value!r}")
    return int(match[1])


@dataclass(frozen=True)
class Math(MathTask):
    """MATH from the hub, or from `path`: a folder with train and test files, or one file.

    Columns: problem, solution (its last box is the answer) or answer, level, type or
    subject. `levels=(1, 2)` and `subject='Algebra'` take a part of it.
    """

    name: ClassVar[str] = "math"
    hub: ClassVar[Hub | None] = Hub(
        "DigitalLearningGmbH/MATH-lighteval", {"train": "train", "test": "test"}, "default"
    )


@dataclass(frozen=True)
class Math500(MathTask, HeldOut):
    """MATH-500 from the hub or the file `path`: a test set, or divided with split='hash'.

    Columns, levels and subject as for `math`.
    """

    name: ClassVar[str] = "math500"
    hub: ClassVar[Hub | None] = Hub("HuggingFaceH4/MATH-500", {"test": "test"})
