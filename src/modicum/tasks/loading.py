r"""How the rows of a task become problems in their splits.

Bad rows are refused or skipped with a count, ids are unique, each row goes into a split, copies
in a user's own rows are taken once, and no problem of a later split (train, tune, test) is in an
earlier one. Two questions are the same there when `normalise` gives the same text: case, spaces,
punctuation and how LaTeX is set (`\dfrac`, `\left`, `\,`, `$`) do not count; letters, numbers,
signs and operators do. This finds copies, not paraphrases.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from modicum import answers
from modicum.tasks.base import split_of
from modicum.tasks.readers import Record
from modicum.types import SPLITS, Problem, Split, UserError

if TYPE_CHECKING:
    from modicum.tasks.dataset import DataTask

Role = Literal["train", "only", "tune", "test", "hash"]
"""What a part is for: it is divided into train and tune (90/10 %); all of it is trained on, is
tune or is tested; or a hash of the question divides it into train, tune and test (80/10/10 %)."""
SHOWN_FAULTS = 3
ACCEPTED = "accepted_answers"
"""In the data of a problem with several answers any of which is right: all of them."""
NOTHING = {"nan", "none", "null", "nil", "n/a", "na", "<na>", "nat", "unknown", "tbd"}
"""What programs write for a missing answer."""
SETTING = re.compile(
    r"\\(?:left|right|displaystyle|text|textbf|textit|mathrm|mathbf|quad|qquad|bigg?|Bigg?)"
    r"(?![a-z])|\\[,;:!\s()\[\]]|[~$]",
)
FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")  # \frac12
GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[-+*/=<>^%!|]")


@dataclass(frozen=True)
class RowPart:
    """Rows that belong together. `origin` is what messages call them."""

    name: str
    role: Role
    origin: str
    records: Sequence[Record]


class LeftOut(Exception):
    """A good row that is not asked for, and why."""


Reader = tuple[Callable[[Record], Problem], str]
"""What a row of a part says, and what the user should know of how it is read.

The `id` of what it says identifies it within its part; without one its number does.
"""


@dataclass(frozen=True)
class LoadedRows:
    """The problems by split, and what the user should know."""

    shelf: Mapping[Split, tuple[Problem, ...]]
    notes: tuple[str, ...]


def roles_of(parts: Collection[str]) -> dict[str, Role]:
    """What each of the parts (train, tune, test) is for, by which others there are.

    Without a test part the tune part is tested; without both a hash divides the rest.
    """
    tune: Role = "tune" if "test" in parts else "test"
    train: Role = (
        "hash" if len(parts) == 1 else "only" if {"tune", "test"} <= set(parts) else "train"
    )
    return {"": "hash", "train": train, "tune": tune, "test": "test"}


def accepted(problem: Problem) -> Sequence[str]:
    """The answers any of which is right."""
    return problem.data.get(ACCEPTED, (problem.answer,))


def load_once(task: DataTask) -> LoadedRows:
    """The problems of `task`, read anew."""
    parts = task._parts()
    readers = [task.reader(part) for part in parts]
    placed: list[tuple[Split, Problem]] = []
    where: dict[str, str] = {}
    faults: list[str] = []
    left: Counter[str] = Counter()
    for part, (read, _) in zip(parts, readers, strict=True):
        seen: dict[str, str] = {}
        for record in part.records:
            try:
                problem = _problem(f"{task.name}/{part.name}", record, read(record), seen)
            except LeftOut as why:
                left[str(why)] += 1
                continue
            except UserError as error:
                text = str(error)
                faults.append(text if text.startswith(record.where) else f"{record.where}: {text}")
                continue
            placed.append((_split(problem.question, part.role), problem))
            where[problem.id] = record.where
    total = sum(len(part.records) for part in parts)
    said = [note for note in dict.fromkeys(n for _, n in readers) if note]
    if task.own_rows:
        placed = _sorted_out(f"{total} rows", placed, where, faults, said)
    if faults and task.bad_rows == "refuse":
        raise UserError(_refusal(faults, total, task.skippable))
    kept, taken = hold_out(placed)
    notes = (
        *(f"{task.name}: {note}" for note in said),
        *_notes(task.name, total, faults, left, taken),
    )
    if not kept:
        raise UserError("; ".join((f"{task} has no problem left of {total} rows", *notes)))
    shelf = {split: tuple(p for where, p in kept if where == split) for split in SPLITS}
    return LoadedRows(shelf, notes)


def _split(question: str, role: Role) -> Split:
    split = split_of(question)
    if role in ("test", "tune"):
        return role
    # The tenth that would be tested stays with train: the official test set has that place.
    return "train" if role == "only" or (role == "train" and split == "test") else split


def _problem(place: str, record: Record, said: Problem, seen: dict[str, str]) -> Problem:
    """The problem of a row; UserError when its gold is unusable or its id is another's."""
    for gold in accepted(said):
        answers.check_gold(gold)
    key = said.id or str(record.number)
    if key in seen:
        raise UserError(f"{record.where}: the id {key!r} is also that of {seen[key]}")
    seen[key] = record.where
    return replace(said, id=f"{place}/{key}")


def _sorted_out(
    place: str,
    placed: list[tuple[Split, Problem]],
    where: Mapping[str, str],
    faults: list[str],
    said: list[str],
) -> list[tuple[Split, Problem]]:
    """A user's rows, each taken once; what is wrong with them goes to `faults` and `said`.

    Two rows ask the same when only spaces differ. Where their answers do not agree, nobody knows
    which is right, and none is kept.
    """
    asked: dict[str, list[tuple[Split, Problem]]] = {}
    for split, problem in placed:
        asked.setdefault(" ".join(problem.question.split()), []).append((split, problem))
    copies: list[str] = []
    out: set[str] = set()
    for some in asked.values():
        told = {p.answer: p for _, p in reversed(some)}.values()
        pairs = itertools.combinations(told, 2)
        clash = next((pair for pair in pairs if not _agree(*pair)), ())
        first: dict[Split, Problem] = {}
        for split, one in some:
            if clash:
                other = next(p for p in clash if p.answer != one.answer)
                faults.append(
                    f"{where[one.id]}: its answer is {one.answer[:40]!r}, and {where[other.id]} has"
                    f" {other.answer[:40]!r} for the same question"
                )
            elif first.setdefault(split, one) is not one:
                copies.append(f"{where[one.id]} is {where[first[split].id]}")
            else:
                continue
            out.add(one.id)
    if copies:
        said.append(f"{len(copies)} of {place} are copies and are left out; the first: {copies[0]}")
    kept = [(split, problem) for split, problem in placed if problem.id not in out]
    empty = [p for _, p in kept if p.answer.casefold() in NOTHING]
    if empty:
        shown = f"{empty[0].answer!r} in {where[empty[0].id]}"
        said.append(
            f"{len(empty)} of {place} may have no answer, but the word for none, as {shown}"
        )
    return kept


def _agree(problem: Problem, other: Problem) -> bool:
    """Whether an answer that is right for one is right for the other."""
    pairs = itertools.product(accepted(problem), accepted(other))
    return any(a == b or answers.equal(a, b, True) or answers.equal(b, a, True) for a, b in pairs)


def _refusal(faults: list[str], total: int, skippable: bool) -> str:
    shown = "; ".join(faults[:SHOWN_FAULTS]) + "; ..." * (len(faults) > SHOWN_FAULTS)
    hint = "; bad_rows='skip' leaves them out" * skippable
    return f"{shown} (bad rows: {len(faults)} of {total}{hint})"


def _notes(
    name: str,
    total: int,
    faults: list[str],
    left: Counter[str],
    taken: list[tuple[Problem, Problem]],
) -> list[str]:
    said = [f"{name}: {count} of {total} rows left out: {why}" for why, count in left.items()]
    if faults:
        said.append(f"{name}: {len(faults)} of {total} rows are bad and skipped, as {faults[0]}")
    if taken:
        problem, twin = taken[0]
        said.append(
            f"{name}: {len(taken)} problems are also in a split that is held out, and are"
            f" left out where they would be trained on; the first: {problem.id} is {twin.id}"
        )
    return said


# Overlap ---------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """`text` as its lower-case words, numbers and operators, one space between them."""
    text = unicodedata.normalize("NFKC", text)
    text = FRACTION.sub(r"\\frac", SETTING.sub(" ", text)).replace("\u2212", "-")
    text = SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    words = WORD.findall(GROUPED.sub("", text.lower()))
    return " ".join(words) or text.strip()


def overlap(one: Iterable[Problem], other: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """The pairs (problem of `one`, first of `other` that asks the same)."""
    known: dict[str, Problem] = {}
    for problem in other:
        known.setdefault(normalise(problem.question), problem)
    found = ((problem, known.get(normalise(problem.question))) for problem in one)
    return [(problem, twin) for problem, twin in found if twin is not None]


def hold_out(
    placed: Sequence[tuple[Split, Problem]],
) -> tuple[list[tuple[Split, Problem]], list[tuple[Problem, Problem]]]:
    """What is left when no split holds a problem of a later one, and the pairs taken out.

    The order is train, tune, test: a test set stays whole, and what is trained on gives way.
    """
    keyed = [(split, problem, normalise(problem.question)) for split, problem in placed]
    held: dict[str, tuple[Split, Problem]] = {}  # the first problem of the last split that asks it
    for last in reversed(SPLITS):
        for split, problem, key in keyed:
            if split == last:
                held.setdefault(key, (split, problem))
    kept = [(split, problem) for split, problem, key in keyed if held[key][0] == split]
    taken = [(problem, held[key][1]) for split, problem, key in keyed if held[key][0] != split]
    return kept, taken
