"""AIME and AMC: small test sets of contest problems whose answers are whole numbers.

All problems are in the split test: 30 or 83 problems are too few to train on and to be
tested on too. split='hash' divides them (80/10/10 %) by a hash of the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from modicum.tasks import rows
from modicum.tasks.dataset import BadRows, HeldOut, Hub, Item
from modicum.tasks.readers import Record

AIME = {2024: "HuggingFaceH4/aime_2024", 2025: "yentinglin/aime_2025"}


@dataclass(frozen=True)
class ContestTask(HeldOut):
    """What the contests share: their columns."""

    columns: ClassVar[Sequence[tuple[str, ...]]] = (("problem", "question"), ("answer",))
    path: str | None = None
    split: Literal["test", "hash"] = "test"

    def item(self, record: Record) -> Item:
        """The row as it stands; 142.0 is the answer 142."""
        question = rows.text(record, "problem", "question")
        return Item(question, rows.answer(record, "answer"), key=record.values.get("id"))


@dataclass(frozen=True)
class Aime(ContestTask):
    """AIME of a `year` (2024 or 2025) from the hub or the file `path`: 30 test problems."""

    name: ClassVar[str] = "aime"
    year: Literal[2024, 2025] = 2024
    bad_rows: BadRows = "refuse"

    def source(self) -> Hub:
        """The data set of the year."""
        return Hub(AIME[self.year], {"train": "test"})


@dataclass(frozen=True)
class Amc(ContestTask):
    """AMC 12 of 2022 and 2023 from the hub or the file `path`: 83 test problems."""

    name: ClassVar[str] = "amc"
    hub: ClassVar[Hub | None] = Hub("AI-MO/aimo-validation-amc", {"train": "test"})
    bad_rows: BadRows = "refuse"
