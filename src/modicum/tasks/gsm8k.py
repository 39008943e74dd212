"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168; MIT licence).

The official test set is the split test; the official train set is divided into train and
tune (90/10 %) by a hash of the question. `difficulty` is the number of steps (lines) of the
worked solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modicum import answers
from modicum.tasks import rows
from modicum.tasks.dataset import BadRows, DataTask, Hub, Item
from modicum.tasks.readers import Record


@dataclass(frozen=True)
class Gsm8k(DataTask):
    """GSM8K from the hub, or from `path`: a folder with train and test files, or one file.

    A folder holds `*train*` and `*test*` files. A single file is divided into
    train, tune and test (80/10/10 %) by a hash of the question.
    """

    name: ClassVar[str] = "gsm8k"
    hub: ClassVar[Hub | None] = Hub("openai/gsm8k", {"train": "train", "test": "test"}, "main")
    columns: ClassVar[Sequence[tuple[str, ...]]] = (("question",), ("answer",))
    path: str | None = None
    bad_rows: BadRows = "refuse"

    def item(self, record: Record) -> Item:
        """The gold answer is the number after ####."""
        question, solution = rows.text(record, "question"), rows.text(record, "answer")
        steps = sum(bool(line.strip()) for line in solution.split("####")[0].split("\n"))
        gold = answers.gold_from_gsm8k(solution)
        return Item(question, gold, float(steps), {"solution": solution})
