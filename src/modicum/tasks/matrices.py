r"""Matrices of exact fractions: read from text, written, reduced, inverted.

Read are `\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}` (also other environments and array),
`[[1, 2], [3, 4]]` and bare rows divided by `;` or line breaks. Entries are whole numbers,
decimals, `a/b` and `\frac{a}{b}`; one such number may stand before the matrix as a factor.
The text is a model's: it is matched in pieces of bounded size and never evaluated.
"""

from __future__ import annotations

import re
from fractions import Fraction

from modicum.grading.parts import rows_of
from modicum.grading.quantities import quantity
from modicum.grading.spelling import clean

Matrix = tuple[tuple[Fraction, ...], ...]

MAX_TEXT = 4000  # characters of a written matrix
MAX_SIDE = 10  # rows, columns
MAX_ENTRY = 90  # characters of an entry

NAME = re.compile(
    r"[A-Za-z]{1,12}(?:\s*\([A-Za-z]\))?(?:\s*\^\s*\{?\s*-?\s*[0-9A-Za-z]\s*\}?)?\s*=\s*"
)
FACTOR = re.compile(r"(.{1,100}?)\s*(?:\\cdot|\\times|\*)?\s*(?=\\begin\{|\[\s*\[)", re.DOTALL)
ENTRY = re.compile(rf"(?:[-+./{{}}0-9\s]|\\frac){{1,{MAX_ENTRY}}}", re.ASCII)
LAST = re.compile(
    r"\\begin\{([bBp]?matrix|array)\}(?:(?!\\begin).)*\\end\{\1\}|\[\s*\[[^\[\]]*\](?:\s*,?\s*\[[^\[\]]*\])*\s*\]",
    re.DOTALL,
)


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
    """The last matrix that stands in `text`, as it is written there."""
    found = [match[0] for match in LAST.finditer(text[-MAX_TEXT:])]
    return found[-1] if found else None


def write(matrix: Matrix) -> str:
    """`[[1, 1/2], [0, 3]]`."""
    return "[" + ", ".join("[" + ", ".join(map(str, row)) + "]" for row in matrix) + "]"


# Algebra ---------------------------------------------------------------------------------


def exact(rows: list[list[int]]) -> Matrix:
    """A matrix of whole numbers as fractions."""
    return tuple(tuple(map(Fraction, row)) for row in rows)


def identity(size: int) -> Matrix:
    """The identity of `size` rows."""
    return exact([[int(i == j) for j in range(size)] for i in range(size)])


def transpose(matrix: Matrix) -> Matrix:
    """Rows and columns exchanged."""
    return tuple(zip(*matrix, strict=True))


def combine(a: int, left: Matrix, b: int, right: Matrix) -> Matrix:
    """a left + b right."""
    pairs = zip(left, right, strict=True)
    return tuple(tuple(a * x + b * y for x, y in zip(*rows, strict=True)) for rows in pairs)


def rref(matrix: Matrix) -> Matrix:
    """The reduced row echelon form, by Gauss and Jordan."""
    rows = [list(row) for row in matrix]
    top = 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(top, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[top], rows[pivot] = rows[pivot], rows[top]
        lead = rows[top][column]
        rows[top] = [value / lead for value in rows[top]]
        for i, row in enumerate(rows):
            if i != top and row[column]:
                times = row[column]
                rows[i] = [v - times * w for v, w in zip(row, rows[top], strict=True)]
        top += 1
        if top == len(rows):
            break
    return tuple(map(tuple, rows))


def inverse(matrix: Matrix) -> Matrix | None:
    """The inverse of a square matrix, or None when it is singular."""
    size = len(matrix)
    both = rref(tuple(a + b for a, b in zip(matrix, identity(size), strict=True)))
    left, right = tuple(row[:size] for row in both), tuple(row[size:] for row in both)
    return right if left == identity(size) else None
