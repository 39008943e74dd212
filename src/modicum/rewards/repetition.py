"""Repetition: the share of n-grams of words that are said for the first time.

    score = (different n-grams) / (n-grams)

The repetition penalty of Demystifying Long CoT (arXiv 2502.03373) as open-r1 has it, from
[-1, 0] to [0, 1]. Departure: what a word is. There, what stands between blanks; here also
each sign and each Chinese or Japanese character, and a word ends after 20 characters, so
that text without blanks can repeat itself too.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from modicum.rewards.base import Term
from modicum.spec import within
from modicum.tasks.base import Task
from modicum.types import Completion, Problem

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W{_IDEOGRAPH}]{{1,20}}|[^\w\s]")


@dataclass(frozen=True)
class Repetition(Term):
    """1 if no `n` words in a row come twice, less for every time that some do."""

    name: ClassVar[str] = "repetition"
    n: int = 3

    def __post_init__(self) -> None:
        within("repetition: n", self.n, 1, 100)

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """In [0, 1]: 1 for a text of fewer than `n` words, 0 for one without any."""
        words = WORD.findall(completion.text.lower())
        if len(words) < self.n:
            return float(bool(words))
        grams = list(zip(*(words[start:] for start in range(self.n)), strict=False))
        return len(set(grams)) / len(grams)
