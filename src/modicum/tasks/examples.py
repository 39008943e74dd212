"""Worked examples: problems with their answers that stand before every question.

They tell a base that follows no instruction what is asked for. They are the first different
problems of the train split, in the order of `examples_seed`, whose answer can be shown: more
of them begin with the same ones. Training leaves them out; tune and test share no problem with
the train split. Each is in the style's form, and the task grades it as right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from modicum.config import Sampling
from modicum.grading.extraction import HASHES
from modicum.styles import STYLES
from modicum.tasks.arithmetic import chain
from modicum.tasks.base import MAX_TRIES, Task
from modicum.types import Grade, Problem, Split, UserError

LOOKED_AT = 1000  # problems of a split without an end
FAR = 2**40  # further than any run goes
CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # in GSM8K's solutions
BOX = re.compile(r"\\f?boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


@dataclass(frozen=True)
class Example:
    """A question and the whole text of its answer."""

    question: str
    answer: str


def draw(task: Task, sampling: Sampling) -> tuple[Example, ...]:
    """The examples that `sampling` asks for; UserError when the task has too few."""
    found: dict[str, Example] = {}
    size = task.size("train") if sampling.examples else 0
    for index in range(LOOKED_AT if size is None else size):
        if len(found) == sampling.examples:
            break
        problem = task.problem("train", sampling.examples_seed, index)
        answer = worked(task, problem, sampling.style)
        if answer is not None:
            found.setdefault(_key(problem), Example(problem.question, answer))
    if len(found) < sampling.examples:
        raise UserError(
            f"examples = {sampling.examples}: the train split of {task} has {len(found)} problems"
            " with an answer that can be shown"
        )
    return tuple(found.values())


def worked(task: Task, problem: Problem, style: str) -> str | None:
    """An answer to `problem` in the style, worked out if the problem says how; None: there is none."""
    form = STYLES.get(style)
    for thought in (thought_of(problem), f"The answer is {problem.answer}."):
        if not thought:
            continue
        if form is None:
            text = f"{thought}\nAnswer: {problem.answer}"
            right = task.grade(problem, text).lenient
        else:
            text = form.example(problem.answer, thought)
            right = form.format_ok(text) and task.grade(problem, text).strict
        if right:
            return text
    return None


def thought_of(problem: Problem) -> str:
    """The way to the answer, without the marks of one; empty where the problem does not say it."""
    match problem.data:
        case {"solution": str(text)}:
            text = text.partition("</think>")[0].rpartition("<think>")[2].partition("<answer>")[0]
            return BOX.sub(r"\1", CALCULATOR.sub("", HASHES.sub("", text))).strip()
        case {"steps": tuple(steps)}:
            return "\n".join(map(str, steps))
        case {"terms": tuple(terms), "signs": tuple(signs)}:
            return "=".join(chain(terms, signs))
    return ""


def without(task: Task, examples: Sequence[Example]) -> Task:
    """The task without the problems that are shown."""
    return Rest(task, examples) if examples else task


class Rest:
    """A task whose train split lacks some questions; nothing else is changed."""

    def __init__(self, task: Task, examples: Sequence[Example]) -> None:
        self.task, self._shown = task, {_key(example) for example in examples}
        size = task.size("train")
        self._size = size if size is None else sum(1 for _ in self._left(0, range(size)))
        self._epoch: tuple[tuple[int, int] | None, list[Problem]] = None, []

    def __str__(self) -> str:
        return str(self.task)

    def size(self, split: Split) -> int | None:
        """How many problems are left in the split."""
        return self._size if split == "train" else self.task.size(split)

    def grade(self, problem: Problem, text: str) -> Grade:
        """As the task grades."""
        return self.task.grade(problem, text)

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The problem at `index` of what is left, each once an epoch where there is an end."""
        if split != "train":
            return self.task.problem(split, seed, index)
        if self._size is None:
            # What is shown gives its place to one that no run of this seed comes to.
            places = (index + far * FAR for far in range(MAX_TRIES))
            found = next(self._left(seed, places), None)
        else:
            epoch, place = divmod(index, self._size or 1)
            found = self._order(seed, epoch)[place] if self._size else None
        if found is None:
            raise UserError(f"{self}: all train problems are worked examples, and none is left")
        return found

    def _order(self, seed: int, epoch: int) -> list[Problem]:
        if self._epoch[0] != (seed, epoch):
            size = self.task.size("train") or 0
            places = range(epoch * size, (epoch + 1) * size)
            self._epoch = (seed, epoch), list(self._left(seed, places))
        return self._epoch[1]

    def _left(self, seed: int, places: Iterable[int]) -> Iterator[Problem]:
        found = (self.task.problem("train", seed, place) for place in places)
        return (problem for problem in found if _key(problem) not in self._shown)


def _key(asked: Problem | Example) -> str:
    return " ".join(asked.question.split())
