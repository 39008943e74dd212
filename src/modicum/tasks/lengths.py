"""Prompts that are longer than a run allows, found before anything is sampled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from modicum.config import Sampling
from modicum.tasks import Task
from modicum.tasks.dataset import DataTask
from modicum.tasks.prompts import encode
from modicum.types import SPLITS, Problem, Split, UserError


def measure(tokenizer: Any, sampling: Sampling) -> Callable[[Problem], int]:
    """A function that gives the tokens of a problem's prompt, however many."""
    unbounded = replace(sampling, max_prompt_tokens=sys.maxsize)
    return lambda problem: len(encode(problem, tokenizer, unbounded))


def whole(task: Task, *splits: Split) -> list[Problem]:
    """All problems of splits that have an end."""
    return [task.problem(split, 0, i) for split in splits for i in range(task.size(split) or 0)]


def look(
    problems: Iterable[Problem], tokenizer: Any, sampling: Sampling, model_config: Any
) -> tuple[dict[str, int], str]:
    """The tokens of prompts that are too long, by the problem's id, and a sentence on them.

    The limit is `max_prompt_tokens`, or what the model's positions leave beside `max_tokens`.
    """
    size, limit, why = measure(tokenizer, sampling), sampling.max_prompt_tokens, "max_prompt_tokens"
    positions = getattr(model_config, "max_position_embeddings", None) or sys.maxsize
    if 0 < (room := positions - sampling.max_tokens) < limit:  # without room the sampler says it
        limit, why = room, f"of {positions} positions, beside max_tokens"
    sizes = {problem.id: size(problem) for problem in problems}
    long = {name: tokens for name, tokens in sizes.items() if tokens > limit}
    if not long:
        return long, f"none of {len(sizes)} prompts has more than {limit} tokens ({why})"
    first, most = ", ".join(list(long)[:3]) + ", ..." * (len(long) > 3), max(long.values())
    return long, (
        f"prompts of more than {limit} tokens ({why}): {len(long)} of {len(sizes)}, {first}; the"
        f" longest, of {max(long, key=lambda name: long[name])}, has {most}"
        + f"; --max-prompt-tokens {most} takes them"
        * (most <= room)
    )


def settle(
    task: Task, asked: Iterable[Problem], tokenizer: Any, sampling: Sampling, model_config: Any
) -> Task:
    """The task without prompts that are too long, or as it is if none of `asked` is.

    With `long_prompts = "skip"` they are left out of all splits, otherwise they are a UserError.
    Tasks without an end stay as they are.
    """
    if task.size("train") is None:
        return task
    skip = sampling.long_prompts == "skip" and isinstance(task, DataTask)
    problems = whole(task, *SPLITS) if skip else asked
    long, text = look(problems, tokenizer, sampling, model_config)
    if long and skip and isinstance(task, DataTask):
        return task.without(long, f"{text}; they are left out")
    if long:
        raise UserError(f"{task}: {text}; --long-prompts skip leaves them out")
    return task
