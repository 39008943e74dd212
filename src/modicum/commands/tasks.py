"""`modicum tasks`: what tasks there are, their problems, and whether they are sound."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modicum.config import at_least, from_mapping
from modicum.options import Parser, add_options, given

if TYPE_CHECKING:
    from modicum.tasks import Task

EXAMPLES = """
modicum tasks
modicum tasks 'arithmetic(terms=3, digits=2)' --count 5
modicum tasks "gsm8k(path='data/gsm8k')" --split test --json
modicum tasks "file('problems.jsonl', bad_rows='skip')" --check
"""
CHECKED = 200  # problems of each split that --check looks at


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
    """List the tasks, or show or check problems of one."""
    parser = Parser("tasks", "List the tasks, or show problems of one.", EXAMPLES)
    parser.add_argument("expression", nargs="?", metavar="TASK", help="a task expression")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"look at up to {CHECKED} problems of each split: is the gold answer graded as right,"
        " is a problem in two splits? Exit code 1 when something is wrong",
    )
    add_options(parser, Options, "problems")
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")

    from modicum import spec, tasks
    from modicum.types import UserError

    if found.expression is None:
        if found.check:
            raise UserError("--check needs a task")
        entries = [spec.describe(cls) for cls in tasks.TASKS.values()]
        if found.json:
            print(json.dumps(entries))
        else:
            for entry in entries:
                print(f"{entry['signature']}\n    {entry['summary']}")
        return 0
    task = tasks.parse(found.expression)
    return _check(task, found.json) if found.check else _show(task, options, found.json)


def _show(task: Task, options: Options, as_json: bool) -> int:
    from modicum import tasks

    size = task.size(options.split)
    count = options.count if size is None else min(options.count, size)
    problems = [task.problem(options.split, options.seed, i) for i in range(count)]
    if as_json:
        keys = ("id", "question", "answer", "difficulty")
        print(json.dumps([{key: getattr(p, key) for key in keys} for p in problems]))
        return 0
    print(f"{task}, split {options.split}: {'endless' if size is None else f'{size} problems'}")
    for note in tasks.notes(task):
        print(f"note: {note}")
    for problem in problems:
        print(f"\n{problem.question}\n  answer: {problem.answer}")
    return 0


def _check(task: Task, as_json: bool) -> int:
    """Look at the problems of all splits; 1 when a gold is not right or splits overlap."""
    from modicum import tasks
    from modicum.types import SPLITS

    sizes = {split: task.size(split) for split in SPLITS}
    looked = {
        split: [
            task.problem(split, 0, index)
            for index in range(CHECKED if size is None else min(CHECKED, size))
        ]
        for split, size in sizes.items()
    }
    wrong = {
        split: [p.id for p in some if not task.grade(p, f"<answer>{p.answer}</answer>").strict]
        for split, some in looked.items()
    }
    shared = {
        f"{one} and {other}": len(tasks.overlap(looked[one], looked[other]))
        for one, other in itertools.combinations(SPLITS, 2)
    }
    if as_json:
        numbers = {"sizes": sizes, "looked_at": {s: len(p) for s, p in looked.items()}}
        print(json.dumps({**numbers, "wrong": wrong, "shared": shared, "notes": tasks.notes(task)}))
    else:
        print(task)
        for split, some in looked.items():
            levels = [p.difficulty for p in some if p.difficulty is not None]
            hard = f"difficulty {min(levels):g} to {max(levels):g}" if levels else "no difficulty"
            size = "endless" if sizes[split] is None else f"{sizes[split]} problems"
            gold = f"gold right for {len(some) - len(wrong[split])} of {len(some)}"
            first = f" (not: {wrong[split][0]})" if wrong[split] else ""
            print(f"{split:5}  {size}, {hard}, {gold}{first}")
        for pair, count in shared.items():
            print(f"in {pair}: {count}")
        for note in tasks.notes(task):
            print(f"note: {note}")
    return int(any(wrong.values()) or any(shared.values()))
