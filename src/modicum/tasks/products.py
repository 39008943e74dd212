"""Products of two numbers: "What is 123*45?". The multiplication task of TinyZero.

Factors are uniform on 0 .. 10^digits - 1; a pair in the other order is the same problem for
the splits. `digits` is the difficulty.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from modicum.tasks.base import Draft, Procedural
from modicum.types import Split, UserError


@dataclass(frozen=True)
class Products(Procedural):
    """Products of two numbers of up to `digits` digits."""

    name: ClassVar[str] = "products"
    digits: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 100:
            raise UserError(f"products: digits must be between 1 and 100, not {self.digits}")

    def make(self, rng: random.Random, split: Split) -> Draft:
        pair = [rng.randrange(10**self.digits) for _ in range(2)]
        question = f"What is {pair[0]}*{pair[1]}?"
        data = {"terms": tuple(pair), "signs": ("*",)}
        key = "*".join(map(str, sorted(pair)))
        return Draft(key, question, str(pair[0] * pair[1]), float(self.digits), data)
