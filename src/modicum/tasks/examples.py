"""Worked examples: problems with their answers that stand before every question.

They tell a base that follows no instruction what is asked for. They are the first different
problems of the train split, in the order of `examples_seed`, that can be shown: more of them
begin with the same ones. Training leaves them out; tune and test share nothing with train.
"""

from __future__ import annotations

import re
from typing import Any, cast

from modicum.config import Sampling
from modicum.grading.extraction import HASHES
from modicum.styles import STYLES
from modicum.tasks.base import MAX_TRIES, Procedural, Task
from modicum.tasks.dataset import DataTask
from modicum.types import Problem, Split, UserError

Examples = tuple[tuple[str, str], ...]
"""Questions, and the whole texts of their answers."""
LOOKED_AT = 1000  # problems of a split without an end
HOPELESS = 100  # problems of which none can be shown
FAR = 2**40  # further than any run goes
CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # in GSM8K's solutions
BOX = re.compile(r"\\f?boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


def draw(task: Task, sampling: Sampling) -> Examples:
    """The examples that `sampling` asks for; UserError when the task has too few."""
    found: dict[str, tuple[str, str]] = {}
    size = task.size("train") if sampling.examples else 0
    for index in range(LOOKED_AT if size is None else size):
        if len(found) == sampling.examples or (index == HOPELESS and not found):
            break
        problem = task.problem("train", sampling.examples_seed, index)
        answer = worked(task, problem, sampling.style)
        if answer is not None:
            found.setdefault(_key(problem.question), (problem.question, answer))
    if len(found) < sampling.examples:
        raise UserError(
            f"examples = {sampling.examples}: the train split of {task} has {len(found)} problems"
            " with an answer that can be shown"
            + "; the styles tags and boxed hold answers that are no numbers"
            * (sampling.style in ("hashes", "none"))
        )
    return tuple(found.values())


def worked(task: Task, problem: Problem, style: str) -> str | None:
    """The answer in the style, worked out where the problem says how; None: not one that is right."""
    form, answer = STYLES.get(style), problem.answer
    for thought in (thought_of(task, problem), f"The answer is {answer}."):
        if form is None:
            text = f"{thought}\nAnswer: {answer}".strip()
            right = task.grade(problem, text).lenient
        else:
            text = form.example(answer, thought)
            right = form.format_ok(text) and task.grade(problem, text).strict
        if right and (thought or form is None):
            return text
    return None


def thought_of(task: Task, problem: Problem) -> str:
    """The way to the answer, without the marks of one; empty where nobody says it."""
    text = problem.data.get("solution")
    if isinstance(text, str):
        text = text.partition("</think>")[0].rpartition("<think>")[2].partition("<answer>")[0]
        return BOX.sub(r"\1", CALCULATOR.sub("", HASHES.sub("", text))).strip()
    return task.working(problem) if isinstance(task, Procedural) else ""


def without(task: Task, examples: Examples) -> Task:
    """The task with other problems in the places of those that are shown.

    Of a fixed set they are left out. Elsewhere the others are of places that no run comes to.
    UserError, when one is asked for, if none is left.
    """
    if not examples:
        return task
    shown = {_key(question) for question, _ in examples}
    if isinstance(task, DataTask):
        size = task.size("train") or 0
        found = (task.problem("train", 0, index) for index in range(size))
        ids = {problem.id for problem in found if _key(problem.question) in shown}
        if len(ids) < size:
            return task.without(ids, f"{len(ids)} train problems are worked examples")
    return cast(Task, Rest(task, shown))


class Rest:
    """A task with other train problems in the places of those that are shown."""

    def __init__(self, task: Task, shown: set[str]) -> None:
        self.task, self.shown = task, shown
        # Of the same level: those of a task come in turn.
        self.turns = len(task.levels()) if isinstance(task, Procedural) else 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def __str__(self) -> str:
        return str(self.task)

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The task's own, or the first that is not shown."""
        for far in range(MAX_TRIES):
            found = self.task.problem(split, seed, index + far * FAR * self.turns)
            if split != "train" or _key(found.question) not in self.shown:
                return found
        raise UserError(f"{self}: all train problems are worked examples, and none is left")


def _key(question: str) -> str:
    return " ".join(question.split())
