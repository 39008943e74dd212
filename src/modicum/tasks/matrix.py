r"""Matrices: the reduced row echelon form, or the inverse, in exact fractions.

Entries are whole numbers uniform on -magnitude .. magnitude. An input is left out when a shortcut
that needs no elimination would be right for it. docs/tasks.md says which spellings are read. The
text is a model's: it is matched in pieces of bounded size and never evaluated."""

import random
import re
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from modicum import answers
from modicum.grading import patterns
from modicum.grading.extraction import after_thinking
from modicum.grading.parts import rows_of
from modicum.grading.quantities import quantity
from modicum.grading.spelling import clean
from modicum.limits import Limits
from modicum.tasks.base import Level, Procedural, only, split_of
from modicum.types import Grade, Problem, Split

Matrix = tuple[tuple[Fraction, ...], ...]

MAX_TEXT = 4000  # characters of a written matrix
MAX_SIDE = 10  # rows, columns
ASKED = {"rref": "reduced row echelon form", "inverse": "inverse"}
DEFICIENT = 0.25  # share of the matrices to reduce whose last row depends on the others

NAME, FACTOR, ENTRY, LAST = patterns("named_matrix factor entry last_matrix")


def read(text: str) -> Matrix | None:
    """The matrix that the whole of `text` is, or None: no matrix, not exact, or too large."""
    if len(text) > MAX_TEXT:
        return None
    text = clean(text)
    named = NAME.match(text)
    text = text[named.end() :] if named else text
    factor: Fraction | None = Fraction(1)
    if before := FACTOR.match(text):
        factor, text = _entry(before[1] + "1" * (before[1] == "-")), text[before.end() :]
    cells = rows_of(text) or _bare(text)
    entries = [[_entry(cell) for cell in row] for row in cells[: MAX_SIDE + 1]]
    if factor is None or any(entry is None for row in entries for entry in row):
        return None
    matrix = tuple(tuple(factor * entry for entry in row if entry is not None) for row in entries)
    same = len({len(row) for row in matrix}) == 1 and 1 <= len(matrix[0]) <= MAX_SIDE
    return matrix if same and len(matrix) <= MAX_SIDE else None


def _bare(text: str) -> list[list[str]]:
    """The entries of rows divided by `;` or line breaks, perhaps in one pair of brackets."""
    text = text[1:-1].strip() if text[:1] == "[" and text[-1:] == "]" else text
    rows = [row.strip() for row in re.split(r"[;\n]", text) if row.strip()]
    return [re.split(r"\s*,\s*|\s+", row) for row in rows] if len(rows) > 1 else []


def _entry(text: str) -> Fraction | None:
    found = quantity(text.strip()) if ENTRY.fullmatch(text) else None
    return None if found is None else found.value


def find_last(text: str) -> str | None:
    """The last matrix of a completion, as written; None if a mark was cut off, or without any."""
    if answers.extract_lenient(text) is None:
        return None
    found = [match[0] for match in LAST.finditer(after_thinking(text)[-MAX_TEXT:])]
    return found[-1] if found else None


def write(matrix: Matrix) -> str:
    """`[[1, 1/2], [0, 3]]`."""
    return "[" + ", ".join("[" + ", ".join(map(str, row)) + "]" for row in matrix) + "]"


def exact(rows: list[list[int]]) -> Matrix:
    """A matrix of whole numbers as fractions."""
    return tuple(tuple(map(Fraction, row)) for row in rows)


def identity(size: int) -> Matrix:
    return exact([[int(i == j) for j in range(size)] for i in range(size)])


def rref(matrix: Matrix) -> Matrix:
    """The reduced row echelon form, by Gauss and Jordan."""
    rows, top = [list(row) for row in matrix], 0
    for column in range(len(rows[0])):
        if (pivot := next((i for i in range(top, len(rows)) if rows[i][column]), None)) is None:
            continue
        found = rows.pop(pivot)
        lead = [value / found[column] for value in found]
        rows = [[v - row[column] * w for v, w in zip(row, lead, strict=True)] for row in rows]
        rows.insert(top, lead)
        top += 1
    return tuple(map(tuple, rows))


def inverse(matrix: Matrix) -> Matrix | None:
    """The inverse of a square matrix, or None when it is singular."""
    size = len(matrix)
    both = rref(tuple(a + b for a, b in zip(matrix, identity(size), strict=True)))
    left, right = tuple(row[:size] for row in both), tuple(row[size:] for row in both)
    return right if left == identity(size) else None


class MatrixTask(Procedural):
    """Row-reduce a matrix of `rows` x `rows`+1, or invert one of `rows` x `rows`, exactly."""

    name: ClassVar[str] = "matrix"
    kind: Literal["rref", "inverse"] = "rref"
    graded: ClassVar[tuple[str, ...]] = ("rows",)
    rows: Annotated[Level, Limits(2, 8)] = 3
    magnitude: Annotated[int, Limits(2, 999)] = 5

    def grade(self, problem: Problem, text: str) -> Grade:
        """Right if the marked matrix (`read`) is the one asked for; lenient: the last of the text."""
        gold, none = read(problem.answer), (False, "is no matrix of exact numbers")
        return answers.judge(text, lambda a: m == gold if (m := read(a)) else none, find_last)

    def make(self, rng: random.Random, split: Split) -> Problem | None:
        count = only(self.rows)
        columns = count + (self.kind == "rref")
        numbers = range(-self.magnitude, self.magnitude + 1)
        entries = [[rng.choice(numbers) for _ in range(columns)] for _ in range(count)]
        if self.kind == "rref" and rng.random() < DEFICIENT:
            times = [rng.choice((-1, 0, 1)) for _ in range(count - 1)]
            columns_above = zip(*entries[:-1], strict=True)
            entries[-1] = [sum(t * e for t, e in zip(times, c, strict=True)) for c in columns_above]
        matrix = exact(entries)
        if split_of(shown := write(matrix)) != split:
            return None  # before it is solved, which is what takes time
        gold = rref(matrix) if self.kind == "rref" else inverse(matrix)
        if gold is None or not any(map(any, matrix)) or gold in shortcuts(matrix):
            return None
        question = f"What is the {ASKED[self.kind]} of the matrix {shown}?"
        difficulty = float(count * len(str(self.magnitude)))
        return Problem(shown, question, write(gold), difficulty, {"matrix": entries})


def shortcuts(matrix: Matrix) -> list[Matrix]:
    """Answers that need no elimination, of which none may be right."""
    one = identity(len(matrix))
    if len(matrix[0]) > len(matrix):
        return [matrix, tuple((*row, Fraction(0)) for row in one)]
    turned, negative = tuple(zip(*matrix, strict=True)), tuple(tuple(-x for x in r) for r in matrix)
    both = zip(one, negative, strict=True)
    # The inverse to first order.
    near = tuple(tuple(2 * i + x for i, x in zip(*rows, strict=True)) for rows in both)
    return [matrix, one, turned, negative, near]
