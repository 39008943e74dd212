"""Run a model on a fixed set of held-out problems, sampled and greedy, and grade it.

The set is the first n different problems of a split at seed 0, the same for every run.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from modicum import scorecard
from modicum.config import Sampling
from modicum.scorecard import Evaluation, Graded
from modicum.tasks.base import Task, check_split
from modicum.tasks.examples import Examples, draw, without
from modicum.tasks.prompts import encode
from modicum.types import Completion, Problem, Split, UserError

if TYPE_CHECKING:
    from modicum.engine import Policy

__all__ = ["Evaluation", "evaluate", "held_out"]

MAX_REPEATS = 500  # in a row, after which a split holds no more different problems


def held_out(task: Task, split: Split, count: int) -> list[Problem]:
    """The first `count` different problems (question and answer) of the split, or all it holds: one
    that comes again would count twice in a mean and narrow its interval."""
    size = task.size(split)
    found: dict[tuple[str, str], Problem] = {}
    index = last = 0
    while len(found) < count and index - last < MAX_REPEATS and (size is None or index < size):
        problem = task.problem(split, 0, index)
        index += 1
        if found.setdefault((problem.question, problem.answer), problem) is problem:
            last = index
    if not found:
        raise UserError(f"{task} has no problems in the split {split!r}")
    return list(found.values())


def evaluate(
    policy: "Policy",
    task: Task,
    sampling: Sampling,
    split: str = "test",
    num_problems: int = 256,
    samples: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[Iterable[dict[str, Any]]], None] | None = None,
    examples: Examples | None = None,
) -> Evaluation:
    """Sample `samples` completions (at temperature 0: one) and a greedy one for each problem;
    `examples` are the worked ones of a run, or drawn from the task. `progress(done, total)` counts
    problems over both passes, `keep` gets `scorecard.rows`."""
    examples = draw(task, sampling) if examples is None else examples
    problems = held_out(without(task, examples), check_split(split), num_problems)
    prompts = [encode(p, policy.tokenizer, sampling, examples) for p in problems]
    keys = [("evaluate", seed, split, index) for index in range(len(problems))]

    def run(settings: Sampling, count: int, done: int) -> list[list[Graded]]:
        def told(number: int) -> None:
            if progress is not None:
                progress(done + number, 2 * len(problems))

        return grade(task, problems, policy.sample(prompts, keys, count, settings, progress=told))

    greedy = run(dataclasses.replace(sampling, temperature=0.0), 1, 0)
    drawn = run(sampling, samples, len(problems)) if sampling.temperature > 0 else greedy
    best = [group[0] for group in greedy]
    if keep is not None:
        keep(scorecard.rows(problems, drawn, best))
    return scorecard.summarise(str(task), problems, drawn, best, sampling, split)


def grade(
    task: Task, problems: Sequence[Problem], groups: Sequence[Sequence[Completion]]
) -> list[list[Graded]]:
    """Every completion with its task's verdict."""
    pairs = zip(problems, groups, strict=True)
    return [[(found, task.grade(p, found.text)) for found in group] for p, group in pairs]
