"""Countdown arithmetic: does an expression reach a target from given numbers?

Exact fractions. The text is a model's: it is parsed by `ast`, limited in length, brackets and
signs, and never evaluated.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from modicum.grading.quantities import number
from modicum.grading.spelling import clean

MAX_EXPRESSION = 500  # characters
MAX_BRACKETS = 40

SIGNS = {r"\times": "*", r"\cdot": "*", r"\div": "/"}
# No **, //, leading zeros, and a sign only first or first in a bracket, a minus.
ALLOWED = re.compile(r"[-+*/()0-9\s]*", re.ASCII)
REFUSED = re.compile(r"[-+*/]\s*[-+*/]|(?:^|\()\s*\+|(?<![0-9])0[0-9]", re.ASCII)
OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def countdown(answer: str, numbers: Sequence[int], target: int) -> bool:
    """Whether `answer` reaches `target` with + - * / and brackets, each number used once.

    Exact fractions. A minus sign may also stand first, or first in a bracket. `= value`
    may follow, if it is the target.
    """
    if len(answer) > MAX_EXPRESSION:
        return False
    text = clean(answer)
    for sign, plain in SIGNS.items():
        text = text.replace(sign, plain)
    text, equals, claimed = text.partition("=")
    used: list[int] = []
    return (
        not (equals and number(claimed) != target)
        and evaluate(text, used) == target
        and Counter(used) == Counter(numbers)
    )


def evaluate(text: str, used: list[int] | None = None) -> Fraction | None:
    """The exact value of whole numbers joined by + - * / and brackets; None if it is none.

    The numbers that it holds are added to `used`.
    """
    if len(text) > MAX_EXPRESSION or text.count("(") > MAX_BRACKETS:
        return None
    if not ALLOWED.fullmatch(text) or REFUSED.search(text):
        return None
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval")
        return _value(tree.body, [] if used is None else used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The value of a tree; a ValueError for anything but arithmetic, such as the call 2(3)."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, used)
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError("no arithmetic")
