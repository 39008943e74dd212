"""Sums and products of two numbers: "What is 12345+67?", "What is 123*45?".

The smallest task that a small model can learn, and the multiplication task of TinyZero.
Operands are uniform on 0 .. limit - 1; a pair in the other order is the same problem for
the splits. `digits` (or `below`) is the difficulty.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from modicum.tasks.arithmetic import APPLY
from modicum.tasks.base import Draft, Procedural
from modicum.types import Split, UserError


@dataclass(frozen=True)
class Products(Procedural):
    """Products of two numbers of up to `digits` digits."""

    name: ClassVar[str] = "products"
    sign: ClassVar[str] = "*"
    digits: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 100:
            raise UserError(f"{self.name}: digits must be between 1 and 100, not {self.digits}")

    @property
    def limit(self) -> int:
        """Above all operands."""
        return 10**self.digits

    def make(self, rng: random.Random, split: Split) -> Draft:
        pair = [rng.randrange(self.limit) for _ in range(2)]
        question = f"What is {pair[0]}{self.sign}{pair[1]}?"
        data = {"terms": tuple(pair), "signs": (self.sign,)}
        key, answer = self.sign.join(map(str, sorted(pair))), APPLY[self.sign](*pair)
        return Draft(key, question, str(answer), float(len(str(self.limit - 1))), data)


@dataclass(frozen=True)
class Addition(Products):
    """Sums of two numbers of up to `digits` digits, or of two numbers below `below`."""

    name: ClassVar[str] = "addition"
    sign: ClassVar[str] = "+"
    digits: int = 5
    below: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.below is not None and not 5 <= self.below <= 10**100:
            raise UserError(f"addition: below must be between 5 and 10^100, not {self.below}")

    @property
    def limit(self) -> int:
        """Above all operands."""
        return super().limit if self.below is None else self.below
