"""Data sets by their names: GSM8K, the mathematics of OpenThoughts, AIME and AMC.

GSM8K (Cobbe et al. 2021, arXiv:2110.14168; MIT licence): grade-school word problems. The
official test set is the split test; the official train set is divided into train and tune
(90/10 %) by a hash of the question. `difficulty` is the number of steps (lines) of the worked
solution.

OpenThoughts-114k (Guha et al. 2025, arXiv:2506.04178; Apache-2.0): distilled reasoning problems,
configuration `metadata`. Taken are the rows of the domain math whose gold answer stands in the
last box of `ground_truth_solution`. Code, science and puzzles, proofs and solutions without a
box are left out and counted. There is no official test set: a hash of the question divides them
(80/10/10 %).

AIME and AMC: small test sets of contest problems whose answers are whole numbers. All problems
are in the split test: 30 or 83 are too few to train on and to be tested on too. split='hash'
divides them (80/10/10 %) by a hash of the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from modicum import answers
from modicum.tasks import rows
from modicum.tasks.dataset import ColumnTask, HeldOut, Hub
from modicum.tasks.loading import LeftOut
from modicum.tasks.readers import Record
from modicum.types import Problem, UserError

AIME = {2024: "HuggingFaceH4/aime_2024", 2025: "yentinglin/aime_2025"}


@dataclass(frozen=True)
class Gsm8k(ColumnTask):
    """GSM8K from the hub, or from `path`: a folder with train and test files, or one file.

    A folder holds `*train*` and `*test*` files. A single file is divided into
    train, tune and test (80/10/10 %) by a hash of the question.
    """

    name: ClassVar[str] = "gsm8k"
    hub: ClassVar[Hub | None] = Hub("openai/gsm8k", {"train": "train", "test": "test"}, "main")
    columns: ClassVar[Sequence[tuple[str, ...]]] = (("question",), ("answer",))

    def item(self, record: Record) -> Problem:
        """The gold answer is the number after ####."""
        question, solution = rows.text(record, "question"), rows.text(record, "answer")
        steps = sum(bool(line.strip()) for line in solution.split("####")[0].split("\n"))
        gold = answers.gold_from_gsm8k(solution)
        return Problem("", question, gold, float(steps), {"solution": solution})


@dataclass(frozen=True)
class OpenThoughts(ColumnTask):
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

    def item(self, record: Record) -> Problem:
        """The gold is the last box of the ground truth; no other column is looked at."""
        if rows.text(record, "domain") != "math":
            raise LeftOut("their domain is not math")
        question = rows.text(record, "problem")
        if not record.values.get("ground_truth_solution"):
            raise LeftOut("there is no ground truth")
        solution = rows.text(record, "ground_truth_solution")
        try:
            gold = answers.gold_from_box(solution)
            answers.check_gold(gold or "")
        except UserError:
            gold = None
        if gold is None:
            raise LeftOut("no usable answer stands in a box of the ground truth")
        return Problem("", question, gold, data={"solution": solution})


@dataclass(frozen=True)
class ContestTask(HeldOut):
    """What the contests share: their columns."""

    columns: ClassVar[Sequence[tuple[str, ...]]] = (("problem", "question"), ("answer",))

    def item(self, record: Record) -> Problem:
        """The row as it stands; 142.0 is the answer 142."""
        question = rows.text(record, "problem", "question")
        return Problem(rows.key(record, "id"), question, rows.answer(record, "answer"))


@dataclass(frozen=True)
class Aime(ContestTask):
    """AIME of a `year` (2024 or 2025) from the hub or the file `path`: 30 test problems."""

    name: ClassVar[str] = "aime"
    year: Literal[2024, 2025] = 2024

    def source(self) -> Hub:
        """The data set of the year."""
        return Hub(AIME[self.year], {"train": "test"})


@dataclass(frozen=True)
class Amc(ContestTask):
    """AMC 12 of 2022 and 2023 from the hub or the file `path`: 83 test problems."""

    name: ClassVar[str] = "amc"
    hub: ClassVar[Hub | None] = Hub("AI-MO/aimo-validation-amc", {"train": "test"})
