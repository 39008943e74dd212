r"""Matrices: what is read as one, exact algebra against other ways to it, and no shortcuts."""

from __future__ import annotations

from fractions import Fraction

import pytest

from modicum.tasks import matrix as matrices
from modicum.tasks.matrix import MatrixTask
from modicum.types import Problem


def shown(text: str) -> str | None:
    matrix = matrices.read(text)
    return None if matrix is None else matrices.write(matrix)


def multiply(left: matrices.Matrix, right: matrices.Matrix) -> matrices.Matrix:
    columns = list(zip(*right, strict=True))
    return tuple(
        tuple(sum((a * b for a, b in zip(row, c, strict=True)), Fraction(0)) for c in columns)
        for row in left
    )


@pytest.mark.parametrize(
    "text",
    [
        "[[1, -1/2], [0, 3]]",
        "[[1,-0.5],\n [0,3.0]]",
        "[ [1, -2/4] [0, 3] ]",
        r"\begin{pmatrix} 1 & -\frac{1}{2} \\ 0 & 3 \end{pmatrix}",
        r"$$\left[\begin{array}{c|c}1&-\dfrac{1}{2}\\ 0&3\\ \end{array}\right]$$",
        r"A^{-1} = \frac{1}{2}\begin{bmatrix}2&-1\\0&6\end{bmatrix}",
        r"-\begin{bmatrix}-1 & 1/2 \\ 0 & -3\end{bmatrix}",
        "1/4 * [[4, \u22122], [0, 12]]",
        "1 -1/2\n0 3",
        "[1, -1/2; 0, 3]",
    ],
)
def test_one_matrix_in_many_spellings(text: str) -> None:
    assert shown(text) == "[[1, -1/2], [0, 3]]"


@pytest.mark.parametrize(
    "text",
    [
        *("", "7", "[1, 2]", "[[1, 2], [3]]", "[[1, 2/0]]", "[[]]", "[[1, x]]", "[[1], [2]] + 1"),
        *("([[1]])+1", "[[1]], [[2]]", "[[1]] or [[2]]", "x [[1]]", "[[1e5]]", "[[2**9]]"),
        *("[[" * 1000, "[[" + "1," * 999 + "1]]", "[[" + "9" * 99 + "]]", "[[\u0661]]"),
        *(r"\begin{pmatrix} 1 & 2 \\ 3 & 4", r"\begin{pmatrix}1\end{bmatrix}", "1;2;3,4"),
        "\n".join(["1 2"] * 11),
    ],
)
def test_what_is_no_matrix(text: str) -> None:
    assert matrices.read(text) is None


def determinant(rows: list[list[Fraction]]) -> Fraction:
    """The determinant, by expansion along the first row."""
    if not rows:
        return Fraction(1)
    minors = ([row[:j] + row[j + 1 :] for row in rows[1:]] for j in range(len(rows)))
    signed = ((-1) ** j * rows[0][j] * determinant(minor) for j, minor in enumerate(minors))
    return sum(signed, Fraction(0))


def is_rref(matrix: matrices.Matrix) -> bool:
    leads = [next((j for j, v in enumerate(row) if v), None) for row in matrix]
    places = [lead for lead in leads if lead is not None]
    assert leads == places + [None] * (len(leads) - len(places))
    alone = all([row[j] for row in matrix].count(0) == len(matrix) - 1 for j in places)
    return (
        alone
        and places == sorted(set(places))
        and all(matrix[i][j] == 1 for i, j in enumerate(places))
    )


def rank_of_both(one: matrices.Matrix, other: matrices.Matrix) -> tuple[int, int]:
    """The ranks of `other`, and of `one` and `other` above each other."""
    return tuple(sum(any(row) for row in matrices.rref(m)) for m in (other, one + other))  # type: ignore[return-value]


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_golds_are_inverses_and_reduced_forms(rows: int) -> None:
    ranks = set()
    for index in range(25):
        problem = MatrixTask("inverse", rows).problem("train", 0, index)
        matrix, gold = matrices.exact(problem.data["matrix"]), matrices.read(problem.answer)
        assert gold is not None and determinant([list(row) for row in matrix]) != 0
        assert multiply(matrix, gold) == matrices.identity(rows)
        problem = MatrixTask("rref", rows).problem("train", 0, index)
        matrix, gold = matrices.exact(problem.data["matrix"]), matrices.read(problem.answer)
        assert gold is not None and is_rref(gold)
        alone, both = rank_of_both(matrix, gold)
        assert alone == both  # the same rows are spanned
        ranks.add(alone)
    assert len(ranks) > 1  # some of the matrices do not have full rank


def marked(matrix: matrices.Matrix) -> str:
    return f"<answer>{matrices.write(matrix)}</answer>"


def test_shortcuts_pay_nothing() -> None:
    # For (A - I)^2 = 0 the shortcut 2I - A is the inverse: such A must not be asked.
    shear = matrices.exact([[1, 2], [0, 1]])
    assert matrices.inverse(shear) == matrices.exact([[1, -2], [0, 1]])
    for magnitude in (2, 5):
        task = MatrixTask("inverse", 2, magnitude)
        for index in range(60):
            problem = task.problem("train", 3, index)
            (a, b), (c, d) = rows = problem.data["matrix"]
            matrix, eye = matrices.exact(rows), matrices.identity(2)
            for guess in (
                matrix,
                matrices.exact([[a, c], [b, d]]),
                eye,
                matrices.exact([[2 - a, -b], [-c, 2 - d]]),
            ):
                assert not task.grade(problem, marked(guess)).lenient
    for task in (MatrixTask("rref", 2, 2), MatrixTask("rref", 3)):
        for index in range(40):
            problem = task.problem("train", 3, index)
            matrix = matrices.exact(problem.data["matrix"])
            eye = tuple((*row, Fraction(0)) for row in matrices.identity(task.rows))
            assert not task.grade(problem, marked(matrix)).lenient
            assert not task.grade(problem, marked(eye)).lenient


def test_verdicts_strict_and_lenient() -> None:
    task = MatrixTask("inverse", 2)
    problem = Problem("x", "?", "[[1, -1/2], [0, 1/3]]", data={"matrix": [[1, 0], [0, 1]]})
    for text, strict, lenient in [
        (r"\boxed{\begin{pmatrix}1&-\frac12\\0&\frac13\end{pmatrix}}", True, True),
        (r"\boxed{\begin{pmatrix}1&-\frac{1}{2}\\0&\frac{1}{3}\end{pmatrix}}", True, True),
        ("<answer>[[1, -0.5], [0, 1/3]]</answer>", True, True),
        ("<answer>[[1, -0.5], [0, 0.333333]]</answer>", False, False),
        ("first [[1, 0], [0, 1]], then [[1, -1/2], [0, 1/3]].", False, True),
        ("<think>[[1, -1/2], [0, 1/3]]</think> 5", False, False),
        (r"[[1, -1/2], [0, 1/3]] \boxed{", False, False),
        ("<answer>[[1, -1/2]]</answer>", False, False),
        ("", False, False),
    ]:
        grade = task.grade(problem, text)
        assert (grade.strict, grade.lenient) == (strict, lenient), (text, grade)
