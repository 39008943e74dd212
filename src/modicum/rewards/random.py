"""Random: a coin that knows nothing of the completion, for placebo arms.

    score = 1 with probability p, else 0

Random rewards raised some models' accuracy on mathematics (Spurious Rewards, arXiv
2506.10947): what a run with this reward gains did not come from the problems' answers.
The coin is a hash of (seed, problem, member of the group, text), so that a repeated run
gives the same scores and equal completions of one problem still differ.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modicum.rewards.base import Term
from modicum.spec import within
from modicum.tasks.base import Task
from modicum.types import Completion, Problem


@dataclass(frozen=True)
class Random(Term):
    """1 with probability `p`, whatever was written."""

    name: ClassVar[str] = "random"
    placebo: ClassVar[bool] = True
    p: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        within("random: p", self.p, 0, 1, above=True, below=True)

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """0 or 1."""
        return self._coin(problem, 0, completion)

    def score_group(
        self, task: Task, problem: Problem, completions: Sequence[Completion], faults: list[str]
    ) -> list[float]:
        """0 or 1 for each; equal completions have coins of their own."""
        return [self._coin(problem, member, c) for member, c in enumerate(completions)]

    def _coin(self, problem: Problem, member: int, completion: Completion) -> float:
        key = f"{self.seed}/{problem.id}/{member}/{completion.text}"
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        return float(int.from_bytes(digest[:8], "big") < self.p * 2**64)
