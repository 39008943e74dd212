"""Tasks: problems with checkable answers, and their grading.

To add one: a file with a frozen dataclass (see `base.Task`; `dataset.ColumnTask` for a data
set with columns), an entry in TASKS, a section in docs/tasks.md. The contract suite
(tests/test_tasks.py) picks it up."""

import os
import re
from typing import Any

from modicum import spec
from modicum.tasks import gym, readers
from modicum.tasks.arithmetic import Addition, Arithmetic, Countdown, Products
from modicum.tasks.base import Task
from modicum.tasks.dataset import DataTask
from modicum.tasks.file import FileTask, GivenTask, HubTask
from modicum.tasks.gym import Gym
from modicum.tasks.loading import overlap
from modicum.tasks.matrix import MatrixTask
from modicum.tasks.sets import Aime, Amc, Gsm8k, Math, Math500, OpenThoughts
from modicum.types import UserError

__all__ = ["TASKS", "Task", "fingerprint", "notes", "of", "overlap", "parse"]

MADE = (Addition, Products, Arithmetic, Countdown, MatrixTask, Gym)
READ = (Gsm8k, Math, Math500, OpenThoughts, Aime, Amc, FileTask, HubTask)
TASKS: dict[str, type] = {cls.name: cls for cls in (*MADE, *READ)}
PLAIN = re.compile(r"[\w.~/\\-][\w.~/\\ -]*")


def parse(text: str) -> Task:
    """The task that an expression such as `arithmetic(terms=4)` names."""
    try:
        return spec.build("task", text, {**TASKS, **gym.members(text)})
    except UserError as error:
        raise UserError(_meant(text) or str(error)) from None


def _meant(text: str) -> str:
    """What to write for data that is named as it is, without an expression; empty: it is not."""
    named = PLAIN.fullmatch(text)
    file = readers.ending(text) in readers.READERS
    if named and (file or os.path.isdir(os.path.expanduser(text))):
        return f"task {text!r}: a file or folder is named by --task \"file('{text}')\""
    if not named or text.count("/") != 1:
        return ""
    known = {cls.hub.name: name for name, cls in TASKS.items() if getattr(cls, "hub", None)}
    own = f"that is --task {known[text]}" if text in known else "a data set on the hub is named by"
    return f"task {text!r}: {own}{' or' * (text in known)} --task \"hub('{text}')\""


def of(value: Any) -> Task:
    """The task that a caller names by an expression, an object, or a list of problems."""
    if isinstance(value, str):
        return parse(value)
    return value if isinstance(value, Task) else GivenTask.of(value)


def fingerprint(task: Task) -> str:
    """A hash of what the task has read; empty where its expression alone gives the problems."""
    made = getattr(task, "fingerprint", None)
    return made() if made is not None else ""


def notes(task: Task) -> tuple[str, ...]:
    """Lines on how the data was read: rows skipped or left out, problems that are in two splits."""
    return task.notes() if isinstance(task, DataTask) else ()
