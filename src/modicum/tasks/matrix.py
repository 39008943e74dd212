"""Matrices: the reduced row echelon form, or the inverse, in exact fractions.

Entries are whole numbers uniform on -magnitude .. magnitude. Graded exactly, entry by entry.
An input is left out when a shortcut that needs no elimination would be right for it: A
itself, -A, its transpose, the identity, and 2I - A, which is the inverse to first order.
`rows` and `magnitude` are the difficulty.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from modicum import answers
from modicum.grading.extraction import after_thinking
from modicum.tasks import matrices
from modicum.tasks.base import Draft, Level, Procedural, only, split_of
from modicum.tasks.matrices import Matrix
from modicum.types import Grade, Problem, Split, UserError

ASKED = {"rref": "reduced row echelon form", "inverse": "inverse"}
DEFICIENT = 0.25  # share of the matrices to reduce whose last row depends on the others


@dataclass(frozen=True)
class MatrixTask(Procedural):
    """Row-reduce a matrix of `rows` x `rows`+1, or invert one of `rows` x `rows`, exactly."""

    name: ClassVar[str] = "matrix"
    kind: Literal["rref", "inverse"] = "rref"
    graded: ClassVar[tuple[str, ...]] = ("rows",)
    rows: Level = 3
    magnitude: int = 5

    def __post_init__(self) -> None:
        if self.kind not in ASKED:
            raise UserError(f"matrix: kind is rref or inverse, not {self.kind!r}")
        if len(self.levels()) == 1 and not 2 <= only(self.rows) <= 8:
            raise UserError(f"matrix: rows must be between 2 and 8, not {self.rows}")
        if not 2 <= self.magnitude <= 999:
            raise UserError(f"matrix: magnitude must be between 2 and 999, not {self.magnitude}")

    def grade(self, problem: Problem, text: str) -> Grade:
        """Right if the marked matrix is exactly the one asked for; see `matrices.read`.

        Lenient takes the last matrix of the text when nothing is marked.
        """
        gold = matrices.read(problem.answer)

        def verdict(answer: str) -> tuple[bool, str]:
            matrix = matrices.read(answer)
            wrong = "is no matrix of exact numbers" if matrix is None else "is wrong"
            right = matrix is not None and matrix == gold
            return right, "is right" if right else wrong

        return answers.judge(text, verdict, _last_matrix)

    def make(self, rng: random.Random, split: Split) -> Draft | None:
        count = only(self.rows)
        columns = count + (self.kind == "rref")
        numbers = range(-self.magnitude, self.magnitude + 1)
        entries = [[rng.choice(numbers) for _ in range(columns)] for _ in range(count)]
        if self.kind == "rref" and rng.random() < DEFICIENT:
            times = [rng.choice((-1, 0, 1)) for _ in range(count - 1)]
            columns_above = zip(*entries[:-1], strict=True)
            entries[-1] = [sum(t * e for t, e in zip(times, c, strict=True)) for c in columns_above]
        matrix = matrices.exact(entries)
        shown = matrices.write(matrix)
        if split_of(shown) != split:
            return None  # before it is solved, which is what takes time
        gold = matrices.rref(matrix) if self.kind == "rref" else matrices.inverse(matrix)
        if gold is None or not any(map(any, matrix)) or gold in shortcuts(matrix):
            return None
        question = f"What is the {ASKED[self.kind]} of the matrix {shown}?"
        difficulty = float(count * len(str(self.magnitude)))
        return Draft(shown, question, matrices.write(gold), difficulty, {"matrix": entries})


def _last_matrix(text: str) -> str | None:
    """None if a mark was cut off, or without any number."""
    cut = answers.extract_lenient(text) is None
    return None if cut else matrices.find_last(after_thinking(text))


def shortcuts(matrix: Matrix) -> Iterator[Matrix]:
    """Answers that need no elimination, of which none may be right."""
    yield matrix
    size = len(matrix)
    if len(matrix[0]) > size:
        yield tuple((*row, Fraction(0)) for row in matrices.identity(size))
        return
    yield matrices.identity(size)
    yield matrices.transpose(matrix)
    yield matrices.combine(-1, matrix, 0, matrix)
    yield matrices.combine(2, matrices.identity(size), -1, matrix)
