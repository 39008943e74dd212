"""Accuracy: 1 for a right final answer, else 0. The rule-based reward of R1-Zero.

DeepSeek-R1 (arXiv 2501.12948), section 2.2.2. What is right is the task's to say.
"""

from dataclasses import dataclass
from typing import ClassVar

from modicum.rewards.base import Term
from modicum.tasks.base import Task
from modicum.types import Completion, Problem


@dataclass(frozen=True)
class Accuracy(Term):
    """1 if the marked answer is right; `lenient` accepts an unmarked one as well."""

    name: ClassVar[str] = "accuracy"
    lenient: bool = False

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """1.0 or 0.0."""
        grade = task.grade(problem, completion.text)
        return float(grade.lenient if self.lenient else grade.strict)
