r"""Matrices of exact fractions: read from text, written, reduced, inverted.

Read are `\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}` (any matrix environment and array),
`[[1, 2], [3, 4]]` and bare rows divided by `;` or line breaks. Entries are whole numbers,
decimals, `a/b` and `\frac{a}{b}`; one such number may stand before the matrix as a factor.
The text is a model's: it is matched in pieces of bounded size and never evaluated.
"""

from __future__ import annotations

import re
from fractions import Fraction

from modicum.grading.quantities import clean

Matrix = tuple[tuple[Fraction, ...], ...]

MAX_TEXT = 4000  # characters of a written matrix
MAX_SIDE = 10  # rows, columns
MAX_ENTRY = 100  # characters of an entry

SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:! ]|q?quad(?![A-Za-z])|left(?![A-Za-z])|right(?![A-Za-z]))|~"
)
NAME = re.compile(
    r"[A-Za-z]{1,12}(?:\s*\([A-Za-z]\))?(?:\s*\^\s*\{?\s*-?\s*[0-9A-Za-z]\s*\}?)?\s*="
)
FACTOR = re.compile(r"(.{1,100}?)\s*(?:\\cdot|\\times|\*)?\s*(?=\\begin\{|\[\[)", re.DOTALL)
ENVIRONMENT = re.compile(
    r"\\begin\{([bBpvV]?matrix|smallmatrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL
)
FRAMED = re.compile(r"[\[(]\s*(\\begin\{.*\})\s*[\])]", re.DOTALL)
DECIMAL = r"[0-9]{1,60}(?:\.[0-9]{1,60})?"
ENTRY = re.compile(
    rf"([-+]?)\s*(?:({DECIMAL})(?:\s*/\s*({DECIMAL}))?|\\frac\s*\{{\s*(-?{DECIMAL})\s*\}}\s*\{{\s*({DECIMAL})\s*\}})",
    re.ASCII,
)
LAST = re.compile(
    r"\\begin\{([bBpvV]?matrix|array)\}(?:(?!\\begin).)*\\end\{\1\}|\[\s*\[[^\[\]]*\](?:\s*,?\s*\[[^\[\]]*\])*\s*\]",
    re.DOTALL,
)


def read(text: str) -> Matrix | None:
    """The matrix that the whole of `text` is, or None: no matrix, not exact, or too large."""
    if len(text) > MAX_TEXT:
        return None
    text = SPACING.sub(" ", clean(text)).replace("\u2212", "-")
    text = re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text).strip()
    named = NAME.match(text)
    text = text[named.end() :].strip() if named else text
    text = re.sub(r"\[\s+(?=\[)", "[", text)
    framed = FRAMED.fullmatch(text)
    text = framed[1] if framed else text
    factor = Fraction(1)
    before = FACTOR.match(text)
    if before is not None:
        scale = Fraction(-1) if before[1] == "-" else _entry(before[1])
        if scale is None:
            return None
        factor, text = scale, text[before.end() :]
    cells = _cells(text)
    if cells is None or not cells or len(cells) > MAX_SIDE:
        return None
    entries = [[_entry(cell) for cell in row] for row in cells]
    if any(entry is None for row in entries for entry in row):
        return None
    matrix = tuple(tuple(factor * entry for entry in row if entry is not None) for row in entries)
    same = len({len(row) for row in matrix}) == 1 and 1 <= len(matrix[0]) <= MAX_SIDE
    return matrix if same else None


def find_last(text: str) -> str | None:
    """The last matrix that stands in `text`, as it is written there."""
    found = None
    for found in LAST.finditer(text[-MAX_TEXT:]):  # noqa: B007 (the last one is wanted)
        pass
    return None if found is None else found[0]


def write(matrix: Matrix) -> str:
    """`[[1, 1/2], [0, 3]]`."""
    return "[" + ", ".join("[" + ", ".join(map(str, row)) + "]" for row in matrix) + "]"


def _cells(text: str) -> list[list[str]] | None:
    """The entries as text; None when the brackets are none of those that are read."""
    environment = ENVIRONMENT.fullmatch(text)
    if environment is not None:
        rows = [row for row in environment[2].split(r"\\") if row.strip(" \n\t")]
        return [row.replace(r"\hline", "").split("&") for row in rows]
    if text.startswith("[["):
        if not text.endswith("]"):
            return None
        inner = text[1:-1].strip()
        rows = re.findall(r"\[([^\[\]]*)\]", inner)
        rest = re.sub(r"\[[^\[\]]*\]", "", inner)
        return [row.split(",") for row in rows] if re.fullmatch(r"[\s,;]*", rest) else None
    if text[:1] == "[" and text[-1:] == "]":
        text = text[1:-1].strip()
    if not re.search(r"[;\n]", text):
        return None
    rows = [row.strip() for row in re.split(r"[;\n]", text) if row.strip()]
    return [re.split(r"\s*,\s*|\s+", row) for row in rows]


def _entry(text: str) -> Fraction | None:
    text = text.strip()
    match = ENTRY.fullmatch(text) if len(text) <= MAX_ENTRY else None
    if match is None:
        return None
    sign, above, below, top, bottom = match.groups()
    divisor = Fraction(below or bottom or 1)
    if divisor == 0:
        return None
    value = Fraction(above if above is not None else top) / divisor
    return -value if sign == "-" else value


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
