"""Consistency: the arithmetic in the reasoning is true, and the answer is where it ends.

    score = [answer = value of the last step] * max(0, 1 - false / min(steps, 10))

No published rule exists; this one is ours. For up to ten different steps the second factor is
the share of true ones. More do not dilute a false one: it costs a tenth, so that a list of
trivial truths buys nothing. Without a step, or without a marked answer that is a number or an
expression, the score is 0.

It does not say that the answer is right: `56 + 1 = 57`, `57` is consistent whatever was
asked. Give it a smaller weight than accuracy.
"""

from dataclasses import dataclass
from typing import ClassVar

from modicum import answers
from modicum.rewards import steps
from modicum.rewards.base import Term
from modicum.tasks.base import Task
from modicum.types import Completion, Problem

MAX_COUNTED = 10


@dataclass(frozen=True)
class Consistency(Term):
    """The share of written steps `a + b = c` that are true; 0 if the answer is not the last."""

    name: ClassVar[str] = "consistency"

    def score(self, task: Task, problem: Problem, completion: Completion) -> float:
        """In [0, 1], from exact fractions."""
        answer = answers.extract(completion.text)
        found = steps.steps(_outside_answer(completion.text)) if answer else []
        if not answer or not found:
            return 0.0
        last = found[-1]
        reached = {last.value, last.value * 100} if last.right.endswith("%") else {last.value}
        if not reached & {answers.number(answer), steps.value(answer)}:
            return 0.0
        different = set(found)
        false = sum(not step.true for step in different)
        return max(0.0, 1 - false / min(len(different), MAX_COUNTED))


def _outside_answer(text: str) -> str:
    """`text` without what stands in <answer> tags: an answer is no step towards itself."""
    kept, *parts = text.split("<answer>")
    return " ".join([kept, *(part.partition("</answer>")[2] for part in parts)])
