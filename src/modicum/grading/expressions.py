"""Countdown arithmetic: does an expression reach a target from given numbers?

A recursive parser over exact fractions with a limit on length and depth. The text is a
model's and is never evaluated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from modicum.grading.quantities import clean, number

MAX_EXPRESSION = 500  # characters
MAX_NESTING = 40  # open brackets

TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))", re.ASCII)
SIGNS = {r"\times": "*", r"\cdot": "*", r"\div": "/"}


class _NotArithmetic(Exception):
    """The text is no arithmetic of the allowed kind."""


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
    if equals and number(claimed) != target:
        return False
    try:
        value, used = _Arithmetic(text).evaluate()
    except (_NotArithmetic, ZeroDivisionError):
        return False
    return value == target and Counter(used) == Counter(numbers)


def evaluate(text: str) -> Fraction | None:
    """The exact value of whole numbers joined by + - * / and brackets; None if it is none."""
    if len(text) > MAX_EXPRESSION:
        return None
    try:
        return _Arithmetic(text).evaluate()[0]
    except (_NotArithmetic, ZeroDivisionError):
        return None


class _Arithmetic:
    """Recursive descent over + - * / and brackets; collects the numbers it meets."""

    def __init__(self, text: str) -> None:
        self.used: list[int] = []
        self.tokens: list[str] = []
        self.place = 0
        end, text = 0, text.rstrip()
        while end < len(text):
            match = TOKEN.match(text, end)
            if match is None:
                raise _NotArithmetic(text[end:])
            self.tokens.append(match[1] or match[2])
            end = match.end()

    def evaluate(self) -> tuple[Fraction, list[int]]:
        value = self.sum(0)
        if self.place < len(self.tokens):
            raise _NotArithmetic(self.tokens[self.place])
        return value, self.used

    def take(self, allowed: str) -> str:
        """The next token if it is one of `allowed`, else nothing."""
        if self.place < len(self.tokens) and self.tokens[self.place] in allowed:
            self.place += 1
            return self.tokens[self.place - 1]
        return ""

    def sum(self, depth: int) -> Fraction:
        negative = self.take("-")
        total = -self.product(depth) if negative else self.product(depth)
        while sign := self.take("+-"):
            term = self.product(depth)
            total = total + term if sign == "+" else total - term
        return total

    def product(self, depth: int) -> Fraction:
        total = self.factor(depth)
        while sign := self.take("*/"):
            factor = self.factor(depth)
            total = total * factor if sign == "*" else total / factor
        return total

    def factor(self, depth: int) -> Fraction:
        if self.take("("):
            if depth >= MAX_NESTING:
                raise _NotArithmetic("nested too deeply")
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise _NotArithmetic("a bracket is open")
            return value
        token = self.tokens[self.place] if self.place < len(self.tokens) else ""
        if not token.isdigit() or (len(token) > 1 and token[0] == "0"):
            raise _NotArithmetic(token)
        self.place += 1
        self.used.append(int(token))
        return Fraction(int(token))
