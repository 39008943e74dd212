"""OpenThoughts-114k: the mathematics of a set of distilled reasoning problems.

Guha et al. 2025 (arXiv:2506.04178; Apache-2.0), configuration `metadata`. Taken are the rows
of the domain math whose gold answer stands in the last box of `ground_truth_solution`.
Code, science and puzzles, proofs and solutions without a box are left out and counted.
There is no official test set: a hash of the question divides them (80/10/10 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modicum import answers
from modicum.tasks import rows
from modicum.tasks.dataset import BadRows, DataTask, Hub, Item, LeftOut
from modicum.tasks.readers import Record
from modicum.types import UserError


@dataclass(frozen=True)
class OpenThoughts(DataTask):
    """The math rows of OpenThoughts-114k from the hub, or of the file `path`."""

    name: ClassVar[str] = "openthoughts"
    hub: ClassVar[Hub | None] = Hub(
        "open-thoughts/OpenThoughts-114k",
        {"train": "hash"},
        "metadata",
        ("deepseek_reasoning", "deepseek_solution", "test_cases", "starter_code"),
    )
    columns: ClassVar[Sequence[tuple[str, ...]]] = (
        ("problem",), ("ground_truth_solution",), ("domain",),
    )  # fmt: skip
    path: str | None = None
    bad_rows: BadRows = "refuse"

    def item(self, record: Record) -> Item | LeftOut:
        """The gold is the last box of the ground truth; no other column is looked at."""
        if rows.text(record, "domain") != "math":
            return LeftOut("their domain is not math")
        question = rows.text(record, "problem")
        if not record.values.get("ground_truth_solution"):
            return LeftOut("there is no ground truth")
        solution = rows.text(record, "ground_truth_solution")
        try:
            gold = answers.gold_from_box(solution)
            answers.check_gold(gold or "")
        except UserError:
            gold = None
        if gold is None:
            return LeftOut("no usable answer stands in a box of the ground truth")
        return Item(question, gold, data={"solution": solution})
