"""Accuracy and pass@k on a fixed set of held-out problems, sampled and greedy.

The set is problems 0 .. n-1 of a split at seed 0, the same for every run. The sampled
score of a problem is the mean over its samples; intervals are over problems
(`stats.interval`). The greedy score is one more column, not the headline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modicum import stats
from modicum.answers import format_ok
from modicum.config import Sampling
from modicum.engine import Engine
from modicum.engine.rollout import rollout
from modicum.models.load import Loaded
from modicum.tasks.base import Task, check_split
from modicum.tasks.prompts import encode
from modicum.types import Completion, Problem, Split, UserError


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; shares are between 0 and 1, lengths in tokens."""

    split: str
    num_problems: int
    samples_per_problem: int
    temperature: float
    accuracy: float
    """Mean strict verdict of the samples."""
    low: float
    high: float
    """95 % interval of the accuracy."""
    lenient: float
    """Mean lenient verdict."""
    greedy: float
    """Strict accuracy of the most probable completion."""
    greedy_low: float
    greedy_high: float
    """95 % interval of the greedy accuracy."""
    format: float
    """Share of samples with both pairs of tags in place."""
    truncated: float
    """Share of samples that the token limit cut."""
    length: float
    """Mean length of a sample."""
    pass_at: dict[str, list[float]]
    """k -> [estimate, low, high]."""
    scores: list[float]
    """The sampled score of each problem, for paired comparisons."""

    def to_json(self) -> dict[str, Any]:
        """The evaluation as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        """An evaluation from what `to_json` gave; other keys are left out."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


def held_out(task: Task, split: Split, count: int) -> list[Problem]:
    """The first `count` problems of the split, fewer if it holds fewer."""
    size = task.size(split)
    count = count if size is None else min(count, size)
    if count == 0:
        raise UserError(f"{task} has no problems in the split {split!r}")
    return [task.problem(split, 0, index) for index in range(count)]


def evaluate(
    engine: Engine,
    loaded: Loaded,
    task: Task,
    sampling: Sampling,
    split: str = "test",
    num_problems: int = 256,
    samples: int = 4,
    seed: int = 0,
    rollout_batch: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Sample `samples` completions and one greedy one for each problem, and grade them.

    `progress(done, total)` counts problems over both passes.
    """
    problems = held_out(task, check_split(split), num_problems)
    tokenizer, total = loaded.tokenizer, 2 * len(problems)
    prompts = [
        encode(p, tokenizer, sampling.template, sampling.max_prompt_tokens) for p in problems
    ]
    keys = [("evaluate", seed, split, index) for index in range(len(problems))]

    def run(settings: Sampling, count: int, done: int) -> list[tuple[Completion, ...]]:
        def told(number: int) -> None:
            if progress is not None:
                progress(done + number, total)

        return rollout(engine, loaded, prompts, keys, count, settings, rollout_batch, told)

    greedy = run(dataclasses.replace(sampling, temperature=0.0), 1, 0)
    greedy_scores = [float(v) for v in _verdicts(task, problems, greedy, "strict")]
    drawn = run(sampling, samples, len(problems)) if sampling.temperature > 0 else greedy
    return summarise(task, problems, drawn, greedy_scores, sampling, split)


def _verdicts(
    task: Task, problems: Sequence[Problem], groups: Sequence[Sequence[Completion]], kind: str
) -> list[bool]:
    return [
        getattr(task.grade(problem, completion.text), kind)
        for problem, group in zip(problems, groups, strict=True)
        for completion in group
    ]


def summarise(
    task: Task,
    problems: Sequence[Problem],
    drawn: Sequence[tuple[Completion, ...]],
    greedy_scores: list[float],
    sampling: Sampling,
    split: str,
) -> Evaluation:
    """The `Evaluation` of completions that exist already."""
    count = len(drawn[0])
    grades = [
        [task.grade(problem, c.text) for c in group]
        for problem, group in zip(problems, drawn, strict=True)
    ]
    right = [sum(g.strict for g in group) for group in grades]
    scores = [r / count for r in right]
    every = [c for group in drawn for c in group]
    pass_at: dict[str, list[float]] = {}
    k = 1
    while k <= count:
        band = stats.interval([stats.pass_at_k(count, r, k) for r in right])
        pass_at[str(k)] = [band.mean, band.low, band.high]
        k *= 2
    sampled, best = stats.interval(scores), stats.interval(greedy_scores)
    return Evaluation(
        split=split,
        num_problems=len(problems),
        samples_per_problem=count,
        temperature=sampling.temperature,
        accuracy=sampled.mean,
        low=sampled.low,
        high=sampled.high,
        lenient=sum(g.lenient for group in grades for g in group) / len(every),
        greedy=best.mean,
        greedy_low=best.low,
        greedy_high=best.high,
        format=sum(format_ok(c.text) for c in every) / len(every),
        truncated=sum(not c.finished for c in every) / len(every),
        length=sum(len(c.tokens) for c in every) / len(every),
        pass_at=pass_at,
        scores=scores,
    )
