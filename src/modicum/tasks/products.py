"""Products of two numbers: "What is 123*45?". The multiplication task of TinyZero.

Factors are uniform on 0 .. 10^digits - 1; a pair in the other order is the same problem for
the splits. `digits` is the difficulty.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from modicum import answers
from modicum.spec import Spec
from modicum.tasks.base import Draft, draw
from modicum.types import Grade, Problem, Split, UserError


@dataclass(frozen=True)
class Products(Spec):
    """Products of two numbers of up to `digits` digits."""

    name: ClassVar[str] = "products"
    digits: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 100:
            raise UserError(f"products: digits must be between 1 and 100, not {self.digits}")

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The problem at (split, seed, index)."""
        return draw(self, split, seed, index, self._make)

    def size(self, split: Split) -> int | None:
        """None: there is no end to them, though small ones come again."""
        return None

    def grade(self, problem: Problem, text: str) -> Grade:
        """Exact comparison of the marked answer with the product; 12*34 is no answer."""
        return answers.grade(text, problem.answer)

    def _make(self, rng: random.Random) -> Draft:
        pair = [rng.randrange(10**self.digits) for _ in range(2)]
        question = f"What is {pair[0]}*{pair[1]}?"
        data = {"terms": tuple(pair), "signs": ("*",)}
        key = "*".join(map(str, sorted(pair)))
        return Draft(key, question, str(pair[0] * pair[1]), float(self.digits), data)
