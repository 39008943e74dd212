"""`modicum tasks`: what tasks there are, their problems, and whether they are sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from modicum.options import Parser, show
from modicum.spec import at_least
from modicum.types import UserError

EXAMPLES = """
modicum tasks
modicum tasks 'arithmetic(terms=3, digits=2)' --count 5
modicum tasks "gsm8k(path='data/gsm8k')" --split test --json
modicum tasks "file('problems.jsonl', bad_rows='skip')" --check
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
    """List the tasks, or show or check problems of one."""
    parser = Parser("tasks", "List the tasks, or show problems of one.", EXAMPLES)
    parser.add_argument("expression", nargs="?", metavar="TASK", help="a task expression")
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at up to 200 problems of each split: is the gold answer graded as right,"
        " is a problem in two splits? Exit code 1 when something is wrong",
    )
    found, options = parser.options(args, Options, "problems")

    from modicum import spec, tasks

    if found.expression is None:
        if found.check:
            raise UserError("--check needs a task")
        entries = [spec.describe(cls) for cls in tasks.TASKS.values()]
        lines = [f"{entry['signature']}\n    {entry['summary']}" for entry in entries]
        show(found.json, entries, "\n".join(lines))
        return 0
    task = tasks.parse(found.expression)
    notes = [f"note: {note}" for note in tasks.notes(task)]
    if found.check:
        from modicum.tasks.check import check

        values = check(task)
        show(found.json, values, "\n".join([str(task), *_checked(values), *notes]))
        return int(any(values["wrong"].values()) or any(values["shared"].values()))
    size = task.size(options.split)
    count = options.count if size is None else min(options.count, size)
    problems = [task.problem(options.split, options.seed, i) for i in range(count)]
    keys = ("id", "question", "answer", "difficulty")
    lines = [f"{task}, split {options.split}: {_many(size)}", *notes]
    lines += [f"\n{problem.question}\n  answer: {problem.answer}" for problem in problems]
    values = [{key: getattr(problem, key) for key in keys} for problem in problems]
    show(found.json, values, "\n".join(lines))
    return 0


def _many(size: int | None) -> str:
    return "endless" if size is None else f"{size} problems"


def _checked(values: dict[str, Any]) -> list[str]:
    """What `check` found, a line a split and a pair of splits."""
    lines = []
    for split, size in values["sizes"].items():
        looked, wrong, levels = (values[k][split] for k in ("looked_at", "wrong", "difficulty"))
        hard = f"difficulty {levels[0]:g} to {levels[1]:g}" if levels else "no difficulty"
        first = f" (not: {wrong[0]})" if wrong else ""
        gold = f"gold right for {looked - len(wrong)} of {looked}{first}"
        lines.append(f"{split:5}  {_many(size)}, {hard}, {gold}")
    return lines + [f"in {pair}: {count}" for pair, count in values["shared"].items()]
