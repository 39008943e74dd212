"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv:2110.14168; MIT licence).

The official test set is the split test; the official train set is divided into train and
tune (90/10 %) by a hash of the question. `difficulty` is the number of steps (lines) of the
worked solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from modicum import answers
from modicum.spec import Spec
from modicum.tasks import finite, rows
from modicum.tasks.base import check_split, split_of
from modicum.types import Grade, Problem, Split, UserError

HUB = "openai/gsm8k"
PARTS = ("train", "test")
Placed = tuple[str, Split, Problem]  # where the row stands, its split, the problem


@dataclass(frozen=True)
class Gsm8k(Spec):
    """GSM8K from the hub, or from `path`: a folder with the original JSONL files, or one file.

    A folder holds one `*train*.jsonl` and one `*test*.jsonl`. A single file is divided into
    train, tune and test (80/10/10 %) by a hash of the question.
    """

    name: ClassVar[str] = "gsm8k"
    path: str | None = None

    def __post_init__(self) -> None:
        if self.path is not None and (not isinstance(self.path, str) or not self.path.strip()):
            raise UserError(f"gsm8k: path must be a folder or a file, not {self.path!r}")

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The problem at `index`: each comes once an epoch, in an order that `seed` gives."""
        return finite.pick(self, self._shelf(), split, seed, index)

    def size(self, split: Split) -> int | None:
        """How many problems the split holds."""
        return len(self._shelf()[check_split(split)])

    def grade(self, problem: Problem, text: str) -> Grade:
        """Equality of the marked answer with the number after ####."""
        return answers.grade(text, problem.answer)

    def _shelf(self) -> finite.Shelf:
        if self.path is None:
            return _load_hub()
        if Path(self.path).is_dir():
            files = tuple(_find(Path(self.path), part) for part in PARTS)
            return _load_parts(files, tuple(map(finite.stamp, files)))
        return _load_file(self.path, finite.stamp(self.path))


def _find(folder: Path, part: str) -> str:
    """The one file of `folder` for `part` ("train", "test")."""
    found = sorted(map(str, folder.glob(f"*{part}*.jsonl")))
    if len(found) == 1:
        return found[0]
    have = f"has {len(found)} ({', '.join(found)})" if found else "has none"
    raise UserError(f"gsm8k: {folder} must hold one *{part}*.jsonl; it {have}")


@lru_cache(maxsize=4)
def _load_parts(files: tuple[str, ...], stamps: tuple[tuple[int, int], ...]) -> finite.Shelf:
    """Official train and test files; `stamps` make changed files new ones."""
    placed: list[Placed] = []
    for part, path in zip(PARTS, files, strict=True):
        placed += _place(part, _read(path), official=True)
    return _divide(placed)


@lru_cache(maxsize=4)
def _load_file(path: str, stamp: tuple[int, int]) -> finite.Shelf:
    """One file of problems; `stamp` makes a changed file a new one."""
    return _divide(_place(Path(path).stem, _read(path), official=False))


def _read(path: str) -> list[rows.Record]:
    records = rows.read(path)
    for column in ("question", "answer"):
        rows.require_column(path, records, column)
    return records


@lru_cache(maxsize=1)
def _load_hub() -> finite.Shelf:
    """The dataset from the hub or its local copy; UserError when neither can be had."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(f"gsm8k needs the package datasets: {error}") from None
    try:
        loaded: Any = load_dataset(HUB, "main")
    # ValueError: offline, and the local copy lacks this configuration.
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"gsm8k: the dataset {HUB} (main) was looked for on the hub and in its local copy:"
            f" {' '.join(str(error).split())}; gsm8k(path='folder') takes the original JSONL"
            " files, and with HF_HUB_OFFLINE=1 only a local copy is looked for"
        ) from None
    placed: list[Placed] = []
    for part in PARTS:
        lines = enumerate(loaded[part], start=1)
        records = [rows.Record(f"{HUB} {part}, row {i}", i, row) for i, row in lines]
        placed += _place(part, records, official=True)
    return _divide(placed)


def _place(part: str, records: list[rows.Record], official: bool) -> list[Placed]:
    """The problems of one part: "train" or "test" when it is official, else a file's name."""
    placed: list[Placed] = []
    for record in records:
        question, solution = rows.text(record, "question"), rows.text(record, "answer")
        try:
            gold = answers.gold_from_gsm8k(solution)
        except UserError as error:
            raise UserError(f"{record.where}: {error}") from None
        steps = sum(bool(line.strip()) for line in solution.split("####")[0].split("\n"))
        place = f"gsm8k/{part}/{record.number}"
        problem = Problem(place, question, gold, float(steps), {"solution": solution})
        placed.append((record.where, _split(question, part if official else ""), problem))
    return placed


def _split(question: str, official: str) -> Split:
    split = split_of(question)
    if official == "test":
        return "test"
    # The tenth that would be tested stays with train: the official test set has that place.
    return "train" if official == "train" and split == "test" else split


def _divide(placed: list[Placed]) -> finite.Shelf:
    """By split; UserError when a question of one split is in another, word by word."""
    seen: dict[str, tuple[str, Split]] = {}
    for where, split, problem in placed:
        first, other = seen.setdefault(problem.question, (where, split))
        if other != split:
            raise UserError(f"{where}: this question of {split} is also in {other} ({first})")
    return finite.divide([(split, problem) for _, split, problem in placed])
