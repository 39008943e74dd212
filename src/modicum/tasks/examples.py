"""Worked examples, which stand before every question, and prompts that become too long.

Examples are the first different problems of the train split, in the order of `examples_seed`, that
can be shown. Training leaves them out; tune and test share nothing with train. Prompts that are
longer than a run allows are found before anything is sampled."""

import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from modicum.answers import STYLES
from modicum.config import Sampling
from modicum.grading.extraction import HASHES
from modicum.tasks.base import MAX_TRIES, Procedural, Task
from modicum.tasks.dataset import DataTask
from modicum.tasks.prompts import Examples, encode
from modicum.types import SPLITS, Frozen, Problem, Split, UserError

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
        if (answer := worked(task, problem, sampling.style)) is not None:
            found.setdefault(_key(problem.question), (problem.question, answer))
    if len(found) < sampling.examples:
        told: Any = {"asked": sampling.examples, "task": task, "count": len(found)}
        numbers = sampling.style in ("hashes", "none")
        raise UserError.of("few_numbers_shown" if numbers else "few_shown", **told)
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
    if isinstance(text := problem.data.get("solution"), str):
        text = text.partition("</think>")[0].rpartition("<think>")[2].partition("<answer>")[0]
        return BOX.sub(r"\1", CALCULATOR.sub("", HASHES.sub("", text))).strip()
    return task.working(problem) if isinstance(task, Procedural) else ""


def without(task: Task, examples: Examples) -> Task:
    """The task with other problems in the places of those that are shown; of a fixed set they are
    left out. UserError, when one is asked for, if none is left."""
    if not examples:
        return task
    shown = {_key(question) for question, _ in examples}
    if isinstance(task, DataTask):
        found = whole(task, "train")
        ids = {problem.id for problem in found if _key(problem.question) in shown}
        if len(ids) < len(found):
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


def whole(task: Task, *splits: Split) -> list[Problem]:
    """All problems of splits that have an end."""
    return [task.problem(split, 0, i) for split in splits for i in range(task.size(split) or 0)]


class Sizes(Frozen):
    """How long prompts are, and may be: what they are made of, and the model's config."""

    tokenizer: Any
    sampling: Sampling
    examples: Examples = ()
    model_config: Any = None

    def of(self, problem: Problem) -> int:
        """The tokens of a problem's prompt, however many."""
        unbounded = replace(self.sampling, max_prompt_tokens=sys.maxsize)
        return len(encode(problem, self.tokenizer, unbounded, self.examples))

    def look(self, problems: Iterable[Problem]) -> tuple[dict[str, int], str]:
        """The tokens of prompts that are too long, by the problem's id, and a sentence on them."""
        limit, why = self.sampling.max_prompt_tokens, "max_prompt_tokens"
        positions = getattr(self.model_config, "max_position_embeddings", None) or sys.maxsize
        room = positions - self.sampling.max_tokens
        if 0 < room < limit:  # without room the sampler says it
            limit, why = room, f"of {positions} positions, beside max_tokens"
        if self.examples:
            why += f", with {len(self.examples)} worked examples"
        sizes = {problem.id: self.of(problem) for problem in problems}
        if not (long := {name: tokens for name, tokens in sizes.items() if tokens > limit}):
            return long, f"none of {len(sizes)} prompts has more than {limit} tokens ({why})"
        first, most = ", ".join(list(long)[:3]) + ", ..." * (len(long) > 3), max(long.values())
        some = f"prompts of more than {limit} tokens ({why}): {len(long)} of {len(sizes)}, {first}"
        hint = f"; --max-prompt-tokens {most} takes them" * (most <= room)
        return long, f"{some}; the longest, of {max(long, key=long.__getitem__)}, has {most}{hint}"

    def settle(self, task: Task, asked: Iterable[Problem]) -> Task:
        """The task without prompts that are too long, which are a UserError unless `long_prompts`
        is "skip"; as it is if none of `asked` is too long, or the task has no end."""
        if task.size("train") is None:
            return task
        skip = self.sampling.long_prompts == "skip" and isinstance(task, DataTask)
        looked = whole(task, *SPLITS) if skip else list(asked)
        long, text = self.look(looked)
        if not long:
            return task
        if skip and isinstance(task, DataTask) and len(long) < len(looked):
            return task.without(long, f"{text}; they are left out")
        hint = "; --long-prompts skip leaves them out"
        raise UserError(f"{task}: {text}{hint * (isinstance(task, DataTask) and not skip)}")
