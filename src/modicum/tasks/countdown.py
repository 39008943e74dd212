"""Countdown: reach a target from given numbers, each used exactly once, with + - * /.

The task of TinyZero (github.com/Jiayi-Pan/TinyZero); departures: every number must be
used, values are exact fractions, and a wrong answer is worth nothing.
"""

import operator
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar

from modicum import answers
from modicum.limits import Limits
from modicum.tasks.base import Level, Procedural, only
from modicum.types import Grade, Problem, Split

MAX_TARGET = 999
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass(frozen=True)
class Node:
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


@dataclass(frozen=True)
class Countdown(Procedural):
    """Reach a target from `numbers` numbers between 1 and `max_value`."""

    name: ClassVar[str] = "countdown"
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
            whole = combine(left, sign, right)
            if whole is None:
                return None
            steps.append(f"{left.value}{sign}{right.value}={whole.value}")
            parts.append(whole)
        target = parts[0].value
        if not 1 <= target <= MAX_TARGET or any("-" in step.split("=")[1] for step in steps):
            return None
        rng.shuffle(numbers)
        listed = ", ".join(map(str, numbers))
        question = f"Make {target} from {listed}, each used once."
        key = f"{sorted(numbers)} {target}"
        data = {"numbers": tuple(numbers), "target": int(target), "steps": tuple(steps)}
        return Problem(key, question, parts[0].text, float(only(self.numbers)), data)
