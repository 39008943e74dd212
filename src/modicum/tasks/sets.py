"""Data sets by their names: GSM8K, MATH, the mathematics of OpenThoughts, AIME and AMC.

docs/tasks.md says which rows are taken, how they are divided, and whose they are (arXiv:2110.14168,
2103.03874, 2305.20050, 2506.04178)."""

import re
from typing import Annotated, ClassVar, Literal

from modicum import answers
from modicum.limits import Limits
from modicum.spec import nearest
from modicum.tasks import rows
from modicum.tasks.dataset import Columns, ColumnTask, HeldOut, Hub, Reader, RowPart
from modicum.tasks.loading import LeftOut, Role
from modicum.tasks.readers import Record
from modicum.types import Problem, UserError

AIME = {2024: "HuggingFaceH4/aime_2024", 2025: "yentinglin/aime_2025"}
LEVEL = re.compile(r"(?:Level )?([1-5])", re.ASCII)
UNKNOWN = "Level ?"  # stands in two rows of the original train set
SUBJECTS = ("subject", "type")
UNREAD = ("deepseek_reasoning", "deepseek_solution", "test_cases", "starter_code")
BOTH: dict[str, Role] = {"train": "train", "test": "test"}
ONE: dict[str, Role] = {"train": "hash"}


class Gsm8k(ColumnTask):
    """GSM8K from the hub, or from `path`: a folder with train and test files, or one file."""

    hub: ClassVar[Hub | None] = Hub("openai/gsm8k", BOTH, "main")
    columns: ClassVar[Columns] = (("question",), ("answer",))

    def item(self, record: Record) -> Problem:
        question, solution = rows.text(record, "question"), rows.text(record, "answer")
        steps = sum(bool(line.strip()) for line in solution.split("####")[0].split("\n"))
        gold = answers.gold_from_gsm8k(solution)
        return Problem("", question, gold, float(steps), {"solution": solution})


class MathTask(ColumnTask):
    """What `math` and `math500` share: columns, levels, subjects."""

    columns: ClassVar[Columns] = (("problem",), ("answer", "solution"))
    levels: Annotated[tuple[int, ...], Limits(1, 5)] = ()
    subject: str | None = None

    def reader(self, part: RowPart) -> Reader:
        """A level or subject is needed only when it is asked for."""
        made, records = super().reader(part), part.records
        if self.levels:
            rows.require_column(part.origin, records, "level")
        if self.subject:
            rows.require_column(part.origin, records, *SUBJECTS)
            known = {str(r.values.get(name) or "") for r in records for name in SUBJECTS} - {""}
            if _plain(self.subject) not in map(_plain, known):
                near = nearest(self.subject, known)
                raise UserError(f"{self.name}: no subject {self.subject!r}; {near}")
        return made

    def item(self, record: Record) -> Problem:
        """The gold is `answer` if there is one, else the last box of `solution`."""
        question, values = rows.text(record, "problem"), record.values
        solution = rows.text(record, "solution") if values.get("solution") is not None else None
        level = _level(record)
        if "answer" in values:
            gold = rows.as_answer(record, "answer", rows.value(record, "answer"))
        elif (gold := answers.gold_from_box(rows.text(record, "solution"))) is None:
            raise UserError(r"there is no \boxed{...} that is closed in 'solution'")
        if self.levels and level not in self.levels:
            raise LeftOut(f"their level is none of {', '.join(map(str, self.levels))}")
        subject = next((values[name] for name in SUBJECTS if values.get(name)), None)
        if self.subject and _plain(str(subject)) != _plain(self.subject):
            raise LeftOut(f"their subject is not {self.subject!r}")
        found = {"solution": solution, "subject": subject}
        data = {name: value for name, value in found.items() if value is not None}
        return Problem(rows.key(record, "unique_id"), question, gold, level, data)


def _plain(subject: str) -> str:
    return re.sub(r"[^a-z]+", " ", subject.lower().replace("&", "and")).strip()


def _level(record: Record) -> float | None:
    """The level of a row, from 3, "3" or "Level 3"; None when it is not known."""
    if (value := record.values.get("level")) is None or value == UNKNOWN:
        return None
    if (match := LEVEL.fullmatch(str(value).strip())) is None or isinstance(value, bool):
        raise UserError(f"'level' must be 1 to 5 or such as 'Level 3', not {value!r}")
    return float(match[1])


class Math(MathTask):
    """MATH from the hub, or from `path`: a folder with train and test files, or one file."""

    hub: ClassVar[Hub | None] = Hub("DigitalLearningGmbH/MATH-lighteval", BOTH, "default")


class Math500(MathTask, HeldOut):
    """MATH-500 from the hub or the file `path`: a test set, or divided with split='hash'."""

    hub: ClassVar[Hub | None] = Hub("HuggingFaceH4/MATH-500", {"test": "test"})


class OpenThoughts(ColumnTask):
    """The math rows of OpenThoughts-114k from the hub, or of the file `path`."""

    name: ClassVar[str] = "openthoughts"
    hub: ClassVar[Hub | None] = Hub("open-thoughts/OpenThoughts-114k", ONE, "metadata", UNREAD)
    columns: ClassVar[Columns] = (("problem",), ("ground_truth_solution",), ("domain",))

    def item(self, record: Record) -> Problem:
        """The gold is the last box of the ground truth; no other column is looked at."""
        if rows.text(record, "domain") != "math":
            raise LeftOut("their domain is not math")
        question = rows.text(record, "problem")
        if not record.values.get("ground_truth_solution"):
            raise LeftOut("there is no ground truth")
        solution = rows.text(record, "ground_truth_solution")
        try:
            gold = answers.check_gold(answers.gold_from_box(solution) or "")
        except UserError:
            raise LeftOut("no usable answer stands in a box of the ground truth") from None
        return Problem("", question, gold, data={"solution": solution})


class ContestTask(HeldOut):
    """What the contests share: their columns."""

    columns: ClassVar[Columns] = (("problem", "question"), ("answer",))

    def item(self, record: Record) -> Problem:
        """The row as it stands; 142.0 is the answer 142."""
        question = rows.text(record, "problem", "question")
        gold = rows.as_answer(record, "answer", rows.value(record, "answer"))
        return Problem(rows.key(record, "id"), question, gold)


class Aime(ContestTask):
    """AIME of a `year` (2024 or 2025) from the hub or the file `path`: 30 test problems."""

    year: Literal[2024, 2025] = 2024

    def source(self) -> Hub:
        return Hub(AIME[self.year], {"train": "test"})


class Amc(ContestTask):
    """AMC 12 of 2022 and 2023 from the hub or the file `path`: 83 test problems."""

    hub: ClassVar[Hub | None] = Hub("AI-MO/aimo-validation-amc", {"train": "test"})
