"""Format: 1 for a completion in the form that the prompt asks for, else 0.

For tags it is the format reward of DeepSeek-R1-Zero (arXiv 2501.12948), section 2.2.2. It
says nothing of whether the answer is right: keep its weight below that of accuracy.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from modicum.rewards.base import Term
from modicum.styles import STYLES
from modicum.tasks.base import Task
from modicum.types import Completion, Problem


@dataclass(frozen=True)
class Format(Term):
    r"""1 if the answer is marked once, in this style, and nothing follows it.

    tags: one think part and one answer part and nothing outside; boxed: one \boxed{...} at
    the end; hashes: one `#### x`, the last line. An empty part or mark gives 0.
    """

    name: ClassVar[str] = "format"
    style: Literal["tags", "boxed", "hashes"] = "tags"

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """1.0 or 0.0."""
        return float(STYLES[self.style].format_ok(completion.text))
