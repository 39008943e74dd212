"""Format: 1 for <think>...</think> <answer>...</answer> and nothing else, else 0.

The format reward of DeepSeek-R1-Zero (arXiv 2501.12948), section 2.2.2. It says nothing
of whether the answer is right: keep its weight below that of accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from modicum import answers
from modicum.rewards.base import Term
from modicum.tasks.base import Task
from modicum.types import Completion, Problem


@dataclass(frozen=True)
class Format(Term):
    """1 if the completion is one think part and one answer part, neither empty."""

    name: ClassVar[str] = "format"

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """1.0 or 0.0."""
        return float(answers.format_ok(completion.text))
