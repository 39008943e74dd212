"""Arithmetic, endless and graded exactly: chains of sums, sums and products of two numbers, countdown.

Chains ("What is 12+45-7+30?") are the default task. Operands are uniform on 1 .. 10^digits - 1,
operators uniform on `operators`, the usual precedence holds. `terms` and `digits` are the difficulty.

Sums of two numbers ("What is 12345+67?") are the smallest task that a small model can learn,
products ("What is 123*45?") the multiplication task of TinyZero. Operands are uniform on
0 .. limit - 1; a pair in the other order is the same problem for the splits. `digits` (or
`below`) is the difficulty.

Countdown is the task of TinyZero (github.com/Jiayi-Pan/TinyZero): reach a target from given numbers
with + - * /; departures: every number must be used, values are exact fractions, and a wrong answer is
worth nothing."""

import operator
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, ClassVar, NamedTuple

from modicum import answers
from modicum.limits import Limits
from modicum.tasks.base import Level, Procedural, only
from modicum.types import Grade, Problem, Split, UserError

MAX_TARGET = 999  # of countdown
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def chain(terms: Sequence[int], signs: Sequence[str]) -> list[str]:
    """The sum as it gets shorter by one operation at a time, products first: 7-3+2, 4+2, 6."""
    left, rest = list(terms), list(signs)
    links = [_written(left, rest)]
    while rest:
        place = rest.index("*") if "*" in rest else 0
        left[place : place + 2] = [APPLY[rest.pop(place)](*left[place : place + 2])]
        links.append(_written(left, rest))
    return links


def _written(terms: Sequence[int], signs: Sequence[str]) -> str:
    return str(terms[0]) + "".join(f"{s}{t}" for s, t in zip(signs, terms[1:], strict=True))


class ChainTask(Procedural):
    """Base of the tasks whose problems are chains of `terms` and `signs`."""

    completion_tokens: ClassVar[int] = 256

    def working(self, problem: Problem) -> str:
        return "=".join(chain(problem.data["terms"], problem.data["signs"]))


class Arithmetic(ChainTask):
    """Sums of `terms` numbers with up to `digits` digits, joined by `operators` (+, -, *)."""

    graded: ClassVar[tuple[str, ...]] = ("terms", "digits")
    terms: Annotated[Level, Limits(2, 50)] = 4
    digits: Annotated[Level, Limits(1, 9)] = 1
    operators: str = "+-"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.operators or set(self.operators) - set("+-*"):
            raise UserError(f"arithmetic: operators are made of + - *, not {self.operators!r}")

    def origin(self) -> str:
        # Frozen as it was when the tiny base was pretrained and two digits were the default, so
        # that its text can be made again.
        shown = [] if self.terms == 4 else [f"terms={self.terms}"]
        shown += [] if self.digits == 2 else [f"digits={self.digits}"]
        shown += [] if self.operators == "+-" else [f"operators={self.operators!r}"]
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def make(self, rng: random.Random, split: Split) -> Problem:
        count, digits = only(self.terms), only(self.digits)
        terms = [rng.randint(1, 10**digits - 1) for _ in range(count)]
        signs = [rng.choice(self.operators) for _ in range(count - 1)]
        text = _written(terms, signs)
        # A sum in another order is the same problem: it must not reach another split.
        summands = sorted(("+" + text.replace("-", " -").replace("+", " +")).split())
        difficulty = float(count * digits)
        data = {"terms": tuple(terms), "signs": tuple(signs)}
        answer = chain(terms, signs)[-1]
        return Problem(" ".join(summands), f"What is {text}?", answer, difficulty, data)


class Products(ChainTask):
    """Products of two numbers of up to `digits` digits."""

    sign: ClassVar[str] = "*"
    graded: ClassVar[tuple[str, ...]] = ("digits",)
    digits: Annotated[Level, Limits(1, 100)] = 2

    @property
    def limit(self) -> int:
        """Above all operands."""
        return 10 ** only(self.digits)

    def make(self, rng: random.Random, split: Split) -> Problem:
        pair = [rng.randrange(self.limit) for _ in range(2)]
        question = f"What is {pair[0]}{self.sign}{pair[1]}?"
        data = {"terms": tuple(pair), "signs": (self.sign,)}
        key, answer = self.sign.join(map(str, sorted(pair))), APPLY[self.sign](*pair)
        return Problem(key, question, str(answer), float(len(str(self.limit - 1))), data)


class Addition(Products):
    """Sums of two numbers of up to `digits` digits, or of two numbers below `below`."""

    sign: ClassVar[str] = "+"
    digits: Annotated[Level, Limits(1, 100)] = 5
    below: Annotated[int | None, Limits(5, 10**100)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.below is not None and isinstance(self.digits, tuple):
            raise UserError("addition: below and levels of digits exclude each other")

    @property
    def limit(self) -> int:
        return super().limit if self.below is None else self.below


class Node(NamedTuple):
    """A partial expression: its text, its value, and whether it needs brackets."""

    text: str
    value: Fraction
    loose: bool = False


def combine(left: Node, sign: str, right: Node) -> Node | None:
    """left sign right, or None for a division by zero or one that leaves a fraction."""
    strong = sign in "*/"
    apart = right.loose and sign != "+"
    first = f"({left.text})" if left.loose and strong else left.text
    second = f"({right.text})" if apart or (strong and not right.text.isdigit()) else right.text
    if sign == "/" and (right.value == 0 or (left.value / right.value).denominator != 1):
        return None
    return Node(f"{first}{sign}{second}", APPLY[sign](left.value, right.value), not strong)


class Countdown(Procedural):
    """Reach a target from `numbers` numbers between 1 and `max_value`."""

    completion_tokens: ClassVar[int] = 1024  # a search, as in TinyZero
    graded: ClassVar[tuple[str, ...]] = ("numbers",)
    numbers: Annotated[Level, Limits(2, 10)] = 4
    max_value: Annotated[int, Limits(5, MAX_TARGET)] = 99

    def grade(self, problem: Problem, text: str) -> Grade:
        """Right if the marked expression uses the numbers exactly and reaches the target."""
        return answers.grade_countdown(text, problem.data["numbers"], problem.data["target"])

    def working(self, problem: Problem) -> str:
        return "\n".join(problem.data["steps"])

    def make(self, rng: random.Random, split: Split) -> Problem | None:
        numbers = [rng.randint(1, self.max_value) for _ in range(only(self.numbers))]
        parts = [Node(str(n), Fraction(n)) for n in numbers]
        steps: list[str] = []
        while len(parts) > 1:
            left, right = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
            sign = rng.choice("+-*/")
            if (whole := combine(left, sign, right)) is None:
                return None
            steps.append(f"{left.value}{sign}{right.value}={whole.value}")
            parts.append(whole)
        target = parts[0].value
        if not 1 <= target <= MAX_TARGET or any("-" in step.split("=")[1] for step in steps):
            return None
        rng.shuffle(numbers)
        question = f"Make {target} from {', '.join(map(str, numbers))}, each used once."
        key = f"{sorted(numbers)} {target}"
        data = {"numbers": tuple(numbers), "target": int(target), "steps": tuple(steps)}
        return Problem(key, question, parts[0].text, float(only(self.numbers)), data)
