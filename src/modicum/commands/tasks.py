"""`modicum tasks`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from modicum.config import at_least, from_mapping
from modicum.options import Parser, add_options, given

EXAMPLES = """
modicum tasks
modicum tasks 'arithmetic(terms=3, digits=2)' --count 5
modicum tasks "gsm8k(path='data/gsm8k')" --split test --json
"""


@dataclass(frozen=True)
class Options:
    """Which problems to show."""

    split: Literal["train", "tune", "test"] = "train"
    """The split."""
    seed: int = 0
    """The seed of the order."""
    count: int = 3
    """How many."""

    def __post_init__(self) -> None:
        at_least(self, count=1, seed=0)


def run(args: list[str]) -> int:
    """List the tasks, or show problems of one."""
    parser = Parser("tasks", "List the tasks, or show problems of one.", EXAMPLES)
    parser.add_argument("expression", nargs="?", metavar="TASK", help="a task expression")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_options(parser, Options, "problems")
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")

    from modicum import spec, tasks

    if found.expression is None:
        entries = [spec.describe(cls) for cls in tasks.TASKS.values()]
        if found.json:
            print(json.dumps(entries))
        else:
            for entry in entries:
                print(f"{entry['signature']}\n    {entry['summary']}")
        return 0
    task = tasks.parse(found.expression)
    size = task.size(options.split)
    count = options.count if size is None else min(options.count, size)
    problems = [task.problem(options.split, options.seed, i) for i in range(count)]
    if found.json:
        keys = ("id", "question", "answer", "difficulty")
        print(json.dumps([{key: getattr(p, key) for key in keys} for p in problems]))
        return 0
    print(f"{task}, split {options.split}: {'endless' if size is None else f'{size} problems'}")
    for problem in problems:
        print(f"\n{problem.question}\n  answer: {problem.answer}")
    return 0
