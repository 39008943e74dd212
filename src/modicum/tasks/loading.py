r"""How the rows of a task become problems in their splits.

Copies in a user's own rows are taken once, and no problem of a later split (train, tune, test) is
in an earlier one, as `normalise` sees it."""

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from modicum import answers
from modicum.grading import rules
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
ALIKE = rules("problems")
WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[-+*/=<>^%!|]")


class RowPart(NamedTuple):
    """Rows that belong together. `origin` is what messages call them."""

    name: str
    role: Role
    origin: str
    records: Sequence[Record]


class Assigned(NamedTuple):
    """A problem, the split it goes into, and where it stands."""

    split: Split
    problem: Problem
    where: str


class LeftOut(Exception):
    """A good row that is not asked for, and why."""


Reader = tuple[Callable[[Record], Problem], str]
"""What a row of a part says, and what the user should know of how it is read. The `id` of what it
says identifies it within its part; without one its number does."""


class LoadedRows(NamedTuple):
    """The problems by split, and what the user should know."""

    shelf: Mapping[Split, tuple[Problem, ...]]
    notes: tuple[str, ...]


def roles_of(parts: Collection[str]) -> dict[str, Role]:
    """What each of the parts (train, tune, test) is for, by which others there are: without a test
    part the tune part is tested; without both a hash divides the rest."""
    tune: Role = "tune" if "test" in parts else "test"
    several: Role = "only" if {"tune", "test"} <= set(parts) else "train"
    train: Role = "hash" if len(parts) == 1 else several
    return {"": "hash", "train": train, "tune": tune, "test": "test"}


def accepted(problem: Problem) -> Sequence[str]:
    """The answers any of which is right."""
    return problem.data.get(ACCEPTED, (problem.answer,))


def load_once(task: "DataTask") -> LoadedRows:
    """The problems of `task`, read anew."""
    parts = task._parts()
    readers = [task.reader(part) for part in parts]
    placed: list[Assigned] = []
    faults: list[str] = []
    left: Counter[str] = Counter()
    for part, (read, _) in zip(parts, readers, strict=True):
        seen: dict[str, str] = {}
        for record in part.records:
            try:
                problem = _checked(f"{task.name}/{part.name}", record, read(record), seen)
            except LeftOut as why:
                left[str(why)] += 1
            except UserError as error:
                text = str(error)
                faults.append(text if text.startswith(record.where) else f"{record.where}: {text}")
            else:
                placed.append(Assigned(_split(problem.question, part.role), problem, record.where))
    total = sum(len(part.records) for part in parts)
    said = [note for note in dict.fromkeys(n for _, n in readers) if note]
    if task.own_rows:
        placed = _sorted_out(f"{total} rows", placed, faults, said)
    if faults and task.bad_rows == "refuse":
        shown = "; ".join(faults[:SHOWN_FAULTS]) + "; ..." * (len(faults) > SHOWN_FAULTS)
        hint = "; bad_rows='skip' leaves them out" * task.skippable
        raise UserError(f"{shown} (bad rows: {len(faults)} of {total}{hint})")
    # Train, tune, test: a test set stays whole, and what is trained on gives way.
    keyed = [(normalise(one.problem.question), one) for one in placed]
    held: dict[str, Assigned] = {}  # the first problem of the last split that asks it
    for key, one in sorted(keyed, key=lambda item: -SPLITS.index(item[1].split)):
        held.setdefault(key, one)
    kept = [one for key, one in keyed if held[key].split == one.split]
    taken = [(p.problem, held[key].problem) for key, p in keyed if held[key].split != p.split]
    said += [f"{count} of {total} rows left out: {why}" for why, count in left.items()]
    if faults:
        said.append(f"{len(faults)} of {total} rows are bad and skipped, as {faults[0]}")
    if taken:
        first = f"the first: {taken[0][0].id} is {taken[0][1].id}"
        what = "also in a split that is held out, and are left out where they would be trained on"
        said.append(f"{len(taken)} problems are {what}; {first}")
    notes = tuple(f"{task.name}: {note}" for note in said)
    if not kept:
        raise UserError("; ".join((f"{task} has no problem left of {total} rows", *notes)))
    shelf = {split: tuple(p for at, p, _ in kept if at == split) for split in SPLITS}
    return LoadedRows(shelf, notes)


def _split(question: str, role: Role) -> Split:
    if role in ("test", "tune"):
        return role
    split = split_of(question)
    # The tenth that would be tested stays with train: the official test set has that place.
    return "train" if role == "only" or (role == "train" and split == "test") else split


def _checked(place: str, record: Record, said: Problem, seen: dict[str, str]) -> Problem:
    for gold in accepted(said):
        answers.check_gold(gold)
    if (key := said.id or str(record.number)) in seen:
        raise UserError(f"{record.where}: the id {key!r} is also that of {seen[key]}")
    seen[key] = record.where
    return replace(said, id=f"{place}/{key}")


def _sorted_out(
    place: str, placed: list[Assigned], faults: list[str], said: list[str]
) -> list[Assigned]:
    """A user's rows, each taken once; what is wrong with them goes to `faults` and `said`. Two ask
    the same when only spaces differ; where their answers do not agree none is kept."""
    asked: dict[str, list[Assigned]] = defaultdict(list)
    for one in placed:
        asked[" ".join(one.problem.question.split())].append(one)
    copies, kept = list[str](), set[str]()
    for some in asked.values():
        told = {one.problem.answer: one for one in reversed(some)}.values()
        clash = next((pair for pair in itertools.combinations(told, 2) if not _agree(*pair)), ())
        first: dict[Split, Assigned] = {}
        for one in some:
            answer = one.problem.answer
            if clash:
                other = next(row for row in clash if row.problem.answer != answer)
                has = f"{other.where} has {other.problem.answer[:40]!r} for the same question"
                faults.append(f"{one.where}: its answer is {answer[:40]!r}, and {has}")
            elif first.setdefault(one.split, one) is not one:
                copies.append(f"{one.where} is {first[one.split].where}")
        kept |= {one.problem.id for one in first.values()}
    if copies:
        said.append(f"{len(copies)} of {place} are copies and are left out; the first: {copies[0]}")
    rest = [one for one in placed if one.problem.id in kept]
    if empty := [one for one in rest if one.problem.answer.casefold() in NOTHING]:
        what = f"no answer, but the word for none, as {empty[0].problem.answer!r}"
        said.append(f"{len(empty)} of {place} may have {what} in {empty[0].where}")
    return rest


def _agree(one: Assigned, other: Assigned) -> bool:
    """Whether an answer that is right for one is right for the other."""
    pairs = itertools.product(accepted(one.problem), accepted(other.problem))
    return any(a == b or answers.equal(a, b, True) or answers.equal(b, a, True) for a, b in pairs)


def normalise(text: str) -> str:
    r"""`text` as its lower-case words, numbers and operators, one space between them; how LaTeX is
    set (`\dfrac`, `\left`, `\,`, `$`) does not count."""
    text = ALIKE(unicodedata.normalize("NFKC", text))
    return " ".join(WORD.findall(text.lower())) or text.strip()


def overlap(one: Iterable[Problem], other: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """The pairs (problem of `one`, first of `other` that asks the same)."""
    known = {normalise(problem.question): problem for problem in reversed([*other])}
    found = ((problem, known.get(normalise(problem.question))) for problem in one)
    return [(problem, twin) for problem, twin in found if twin is not None]
