"""Sums of two numbers: "What is 12345+67?". The smallest task that a small model can learn.

Operands are uniform on 0 .. limit - 1; a pair in the other order is the same problem for
the splits. `digits` (or `below`) is the difficulty.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from modicum.tasks.base import Draft, Procedural
from modicum.types import Split, UserError


@dataclass(frozen=True)
class Addition(Procedural):
    """Sums of two numbers of up to `digits` digits, or of two numbers below `below`."""

    name: ClassVar[str] = "addition"
    digits: int = 5
    below: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 100:
            raise UserError(f"addition: digits must be between 1 and 100, not {self.digits}")
        if self.below is not None and not 5 <= self.below <= 10**100:
            raise UserError(f"addition: below must be between 5 and 10^100, not {self.below}")

    def make(self, rng: random.Random, split: Split) -> Draft:
        limit = 10**self.digits if self.below is None else self.below
        pair = [rng.randrange(limit) for _ in range(2)]
        question = f"What is {pair[0]}+{pair[1]}?"
        data = {"terms": tuple(pair), "signs": ("+",)}
        key = "+".join(map(str, sorted(pair)))
        return Draft(key, question, str(sum(pair)), float(len(str(limit - 1))), data)
