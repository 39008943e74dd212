"""Whether a task is sound: its gold answers are graded as right, its splits share no problem."""

from __future__ import annotations

import itertools
from typing import Any

from modicum.tasks import Task, notes, overlap
from modicum.types import SPLITS

CHECKED = 200  # problems of each split that are looked at


def check(task: Task) -> dict[str, Any]:
    """By split: sizes, problems looked at, their least and greatest difficulty, the ids of those
    whose gold is not right; by pair of splits: problems in both; and the task's notes."""
    sizes = {split: task.size(split) for split in SPLITS}
    looked = {
        split: [
            task.problem(split, 0, index)
            for index in range(CHECKED if size is None else min(CHECKED, size))
        ]
        for split, size in sizes.items()
    }
    levels = {
        s: [p.difficulty for p in some if p.difficulty is not None] for s, some in looked.items()
    }
    return {
        "sizes": sizes,
        "looked_at": {split: len(some) for split, some in looked.items()},
        "difficulty": {s: [min(some), max(some)] if some else None for s, some in levels.items()},
        "wrong": {
            split: [p.id for p in some if not task.grade(p, f"<answer>{p.answer}</answer>").strict]
            for split, some in looked.items()
        },
        "shared": {
            f"{one} and {other}": len(overlap(looked[one], looked[other]))
            for one, other in itertools.combinations(SPLITS, 2)
        },
        "notes": notes(task),
    }
