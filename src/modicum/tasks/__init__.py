"""Tasks: problems with checkable answers, and their grading.

To add one: a file with a frozen dataclass (see `base.Task`), an entry in TASKS. The
contract suite (tests/test_tasks.py) picks it up.
"""

from __future__ import annotations

from modicum import spec
from modicum.tasks.arithmetic import Arithmetic
from modicum.tasks.base import Task
from modicum.tasks.countdown import Countdown
from modicum.tasks.file import FileTask
from modicum.tasks.gsm8k import Gsm8k

TASKS: dict[str, type] = {cls.name: cls for cls in (Arithmetic, Countdown, FileTask, Gsm8k)}


def parse(text: str) -> Task:
    """The task that an expression such as `arithmetic(terms=4)` names."""
    return spec.build("task", text, TASKS)
