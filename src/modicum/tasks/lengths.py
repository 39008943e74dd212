"""Prompts that are longer than a run allows, found before anything is sampled."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from modicum.config import Sampling
from modicum.tasks import Task
from modicum.tasks.dataset import DataTask
from modicum.tasks.examples import Examples
from modicum.tasks.prompts import encode
from modicum.types import SPLITS, Problem, Split, UserError


def whole(task: Task, *splits: Split) -> list[Problem]:
    """All problems of splits that have an end."""
    return [task.problem(split, 0, i) for split in splits for i in range(task.size(split) or 0)]


@dataclass(frozen=True)
class Sizes:
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
        """The tokens of prompts that are too long, by the problem's id, and a sentence on them.

        The limit is `max_prompt_tokens`, or what the model's positions leave beside `max_tokens`.
        """
        limit, why = self.sampling.max_prompt_tokens, "max_prompt_tokens"
        positions = getattr(self.model_config, "max_position_embeddings", None) or sys.maxsize
        room = positions - self.sampling.max_tokens
        if 0 < room < limit:  # without room the sampler says it
            limit, why = room, f"of {positions} positions, beside max_tokens"
        if self.examples:
            why += f", with {len(self.examples)} worked examples"
        sizes = {problem.id: self.of(problem) for problem in problems}
        long = {name: tokens for name, tokens in sizes.items() if tokens > limit}
        if not long:
            return long, f"none of {len(sizes)} prompts has more than {limit} tokens ({why})"
        first, most = ", ".join(list(long)[:3]) + ", ..." * (len(long) > 3), max(long.values())
        return long, (
            f"prompts of more than {limit} tokens ({why}): {len(long)} of {len(sizes)}, {first};"
            f" the longest, of {max(long, key=lambda name: long[name])}, has {most}"
            + f"; --max-prompt-tokens {most} takes them"
            * (most <= room)
        )

    def settle(self, task: Task, asked: Iterable[Problem]) -> Task:
        """The task without prompts that are too long, or as it is if none of `asked` is.

        With `long_prompts = "skip"` they are left out of all splits, otherwise they are a
        UserError. Tasks without an end stay as they are.
        """
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
