"""Problems of which there is a fixed number: in which order they come, epoch after epoch.

`index // n` is the epoch; within one, each of the n problems comes once, in a permutation
that depends on (key, split, seed, epoch). `key` is a task's name and not its path: a file
that was moved keeps its order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from modicum.tasks.base import check_split, stream
from modicum.types import Problem, Split, UserError

Shelf = Mapping[Split, tuple[Problem, ...]]


def pick(task: Any, shelf: Shelf, split: str, seed: int, index: int, advice: str) -> Problem:
    """The problem at `index` of the endless sequence of shuffled epochs of `split`.

    Raises UserError, with `advice`, when the split is unknown or holds no problem.
    """
    problems = shelf[check_split(split)]
    if not problems:
        held = ", ".join(f"{len(found)} {name}" for name, found in shelf.items())
        total = sum(map(len, shelf.values()))
        raise UserError(
            f"{task} has no problem for the split {split!r}: it holds {total} ({held}); {advice}"
        )
    epoch, place = divmod(index, len(problems))
    return problems[_order(task.name, split, seed, epoch, len(problems))[place]]


@lru_cache(maxsize=32)
def _order(key: str, split: str, seed: int, epoch: int, count: int) -> tuple[int, ...]:
    order = list(range(count))
    stream(key, split, seed, epoch).shuffle(order)
    return tuple(order)


def fingerprint(shelf: Shelf) -> str:
    """SHA-256 of all problems with all that they hold, split by split, in their order."""
    digest = hashlib.sha256()
    for split, problems in shelf.items():
        for p in problems:
            row = [split, p.id, p.question, p.answer, p.difficulty, dict(p.data)]
            digest.update(json.dumps(row, default=repr).encode() + b"\n")
    return digest.hexdigest()


def first(task: Any, path: str, folders: Sequence[Path]) -> str:
    """The path from the first of these folders in which it leads to something.

    Without folders it is `path` itself; UserError when a relative one is in none of them.
    """
    path = os.path.expanduser(path)
    found = next((place for folder in folders if (place := folder / path).exists()), None)
    if found is None and folders and not Path(path).is_absolute():
        looked = " and not in ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
        raise UserError(f"there is no file {path}, which {task} reads: not in {looked}")
    return path if found is None else str(found)


def stamp(path: str) -> tuple[int, int]:
    """(time of the last change in nanoseconds, size in bytes): when it differs, read again."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path!r} cannot be read: {error}") from None
    return status.st_mtime_ns, status.st_size
