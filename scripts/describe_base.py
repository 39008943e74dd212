"""What a base model does before RL: how often it works step by step, and how well.

    python scripts/describe_base.py --model tiny

Prints a Markdown table: for each task the sampled and greedy accuracy, the share of
completions that work step by step (they open a think tag) or answer at once in tags, and
the accuracy given each, with 95 % intervals over problems.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from modicum import stats, tasks
from modicum.config import Sampling
from modicum.engine import policy_of
from modicum.evaluate import held_out
from modicum.models.load import load
from modicum.tasks.prompts import encode
from modicum.types import Completion

TASKS = [f"arithmetic(terms={n}, digits=1)" for n in range(2, 9)] + [
    "countdown(numbers=2, max_value=20)",
    "countdown(numbers=3, max_value=10)",
]


def works(completion: Completion) -> bool:
    """Whether the completion opens a think tag."""
    return "<think>" in completion.text


def at_once(completion: Completion) -> bool:
    """Whether the completion answers in tags without thinking."""
    return completion.text.startswith("<answer>")


def share(flags: Sequence[bool]) -> str:
    """The share of true flags, in percent, with a Wilson-like interval, or a dash."""
    if not flags:
        return "-"
    band = stats.interval([float(flag) for flag in flags])
    return f"{band.mean:.1%} [{band.low:.1%}, {band.high:.1%}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    loaded, sampling = load(options.model), Sampling()
    policy = policy_of(loaded)
    print("| task | sampled | greedy | works | right if it works | at once | right if at once |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in TASKS:
        task = tasks.parse(name)
        problems = held_out(task, "test", options.problems)
        prompts = [encode(p, loaded.tokenizer, sampling) for p in problems]
        keys = [("describe", index) for index in range(len(problems))]
        drawn = policy.sample(prompts, keys, options.samples, sampling)
        greedy = policy.sample(prompts, keys, 1, Sampling(temperature=0.0))
        pairs = [(p, c) for p, group in zip(problems, drawn, strict=True) for c in group]
        right = {id(c): task.grade(p, c.text).strict for p, c in pairs}
        means = [sum(right[id(c)] for c in group) / len(group) for group in drawn]
        best = [
            task.grade(p, group[0].text).strict for p, group in zip(problems, greedy, strict=True)
        ]
        every = [c for _, c in pairs]
        cells = [
            name,
            f"{stats.interval(means).mean:.1%}",
            f"{sum(best) / len(best):.1%}",
            f"{sum(map(works, every)) / len(every):.0%}",
            share([right[id(c)] for c in every if works(c)]),
            f"{sum(map(at_once, every)) / len(every):.0%}",
            share([right[id(c)] for c in every if at_once(c)]),
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
