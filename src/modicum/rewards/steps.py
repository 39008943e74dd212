r"""The reward `consistency`, and the arithmetic steps that it reads: `3 + 4 = 7`, `a + b = c = d`.

A step is an equation between two neighbours of a chain, at least one of which has an operator. What
touches a variable, a power or a function is left alone. The text is matched, never evaluated."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from modicum import answers
from modicum.grading import patterns, rules
from modicum.grading.comparison import MAX_EXPRESSION, evaluate
from modicum.rewards.base import Term
from modicum.tasks.base import Task
from modicum.types import Completion, Problem

MAX_TEXT = 20_000  # characters, the last ones, that are read
MAX_COUNTED = 10  # different steps that have a weight of their own
MAX_RUN = 200  # parts of an equation that are read

PLAIN = rules("steps")
TOKEN, MARK, OPERATOR, DECIMAL = patterns("working calculator operator number")
ALGEBRA = frozenset("^_\\|{}[]√")


class Step(NamedTuple):
    """`left` = `right` as written, whether that is true, and the value of `right`."""

    left: str
    right: str
    true: bool
    value: Fraction


def steps(text: str) -> list[Step]:
    """The steps in the order in which they end."""
    text = PLAIN(text[-MAX_TEXT:])
    # A calculator mark repeats what is around it: each is read without the other.
    found = [*_read(MARK.sub(lambda match: " " * len(match[0]), text), 0)]
    for match in MARK.finditer(text):
        found += _read(match[1], match.start(1))
    return [step for _, step in sorted(found, key=lambda item: item[0])]


def value(text: str) -> Fraction | None:
    """The value of a text that is one expression, or several that are equal; else None."""
    parts = PLAIN(text).split("=") if len(text) <= MAX_EXPRESSION else []
    values = {_value(part.replace("$", " ").strip()) for part in parts}
    return values.pop() if len(values) == 1 else None


@dataclass
class _Run:
    """Numbers and signs without a gap, and what stands before them."""

    before: str = ""  # the word or character there; empty at the beginning of a line
    glued: bool = False  # whether nothing, not even a blank, is between the two
    tokens: list[str] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)  # where brackets stand that are not closed
    end: int = 0

    def add(self, token: str, end: int) -> None:
        """Take a number or sign that ends at `end`."""
        if token == "=" and self.opened:
            # A bracket around an equation belongs to the prose.
            self.tokens, self.opened, self.before = self.tokens[self.opened[-1] + 1 :], [], ""
        if token == ")":
            self.opened.pop()
        self.opened += [len(self.tokens)] * (token == "(")
        self.tokens.append(token)
        self.end = end

    def steps(self, after: str) -> Iterator[tuple[int, Step]]:
        """(end, step) of its chain, when `after` is the word or character behind it."""
        if not 3 <= len(self.tokens) <= MAX_RUN or "=" not in self.tokens or self.opened:
            return
        sides = [side.strip() for side in " ".join(self.tokens).split("=")]
        word = self.before.isalpha()
        variable = self.before in ALGEBRA if not word else len(self.before) == 1
        joined = self.tokens[0] in "+*/" or (self.tokens[0] == "-" and word) or self.glued
        if variable or (joined and self.before):
            sides[0] = ""
        if after in ALGEBRA or (after.isalpha() and len(after) == 1):
            sides[-1] = ""
        both = [(side, _value(side), OPERATOR.search(side.lstrip("- "))) for side in sides]
        for (left, value, some), (right, other, more) in itertools.pairwise(both):
            if (some or more) and value is not None and other is not None:
                yield self.end, Step(left, right, value == other, other)


def _read(text: str, offset: int) -> Iterator[tuple[int, Step]]:
    """The steps of a text in plain signs; `offset` is added to where they end."""
    run, blank = _Run(), False
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if kind == "blank":
            blank = True
            continue
        operand = kind == "number" or token == "("
        adjacent = operand and bool(run.tokens) and run.tokens[-1] not in "(+-*/="
        if kind in ("word", "other") or adjacent or (token == ")" and not run.opened):
            yield from run.steps(token if kind != "number" else "")
            # Punctuation and line ends separate; words and marks of algebra may belong.
            belongs = kind == "word" or token in ALGEBRA
            run, blank = _Run(token if belongs else "", belongs), False
        if operand or (kind == "sign" and (token != ")" or run.opened)):
            if not run.tokens:
                run.glued = run.glued and not blank
            run.add(token, offset + match.end())
        blank = False
    yield from run.steps("")


def _value(side: str) -> Fraction | None:
    return evaluate(DECIMAL.sub(_ratio, side.replace(",", "").replace(" ", ""))) if side else None


def _ratio(match: re.Match[str]) -> str:
    """A decimal or percentage as a fraction of whole numbers; a whole number as it is."""
    whole, places, percent = match.groups()
    if not (whole or places):
        return match[0]
    scale = 10 ** len(places or "") * (100 if percent else 1)
    number = int(whole + (places or "")) if len(match[0]) <= MAX_RUN else 0
    return str(number) if scale == 1 else f"({number}/{scale})"


class Consistency(Term):
    """The share of written steps `a + b = c` that are true; 0 if the answer is not the last.

        score = [answer = value of the last step] * max(0, 1 - false / min(steps, 10))

    It does not say that the answer is right: give it a smaller weight than accuracy."""

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        answer = answers.extract(completion.text)
        # An answer is no step towards itself.
        kept, *parts = completion.text.split("<answer>")
        outside = " ".join([kept, *(part.partition("</answer>")[2] for part in parts)])
        found = steps(outside) if answer else []
        if not answer or not found:
            return 0.0
        last, different = found[-1], set(found)
        reached = {last.value, last.value * 100} if last.right.endswith("%") else {last.value}
        if not reached & {answers.number(answer), value(answer)}:
            return 0.0
        false = sum(not step.true for step in different)
        return max(0.0, 1 - false / min(len(different), MAX_COUNTED))
