"""What runs wrote on held-out problems before and after training, and by difficulty."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.report.figures.difficulty import Rows
from modicum.report.read import HeldCompletion, RunRecord

PROBLEMS_SHOWN = 3
LEVELS_SHOWN = 8
BINS = 5  # of difficulty, where there are more levels


@dataclass(frozen=True)
class HeldGroup:
    """The completions of runs that answered the same problems from the same base.

    `runs` are numbers of records, `trained` one tuple for each of them.
    """

    base: tuple[HeldCompletion, ...]
    runs: tuple[int, ...]
    trained: tuple[tuple[HeldCompletion, ...], ...]


def groups(records: Sequence[RunRecord]) -> list[HeldGroup]:
    """The runs that have completions, by the base that they share."""
    found: dict[tuple[Any, ...], list[tuple[int, tuple[HeldCompletion, ...]]]] = {}
    for number, record in enumerate(records):
        rows = record.completions("trained")
        if rows and (result := record.result) is not None:
            key = (result.model, result.task, repr(result.base), *_ids(rows))
            found.setdefault(key, []).append((number, rows))
    made = []
    for (_, _, _, *ids), runs in found.items():
        # The first of the runs has the base's completions.
        bases = (records[number].completions("base") for number, _ in runs)
        base = next((rows for rows in bases if rows and _ids(rows) == ids), ())
        numbers, trained = zip(*runs, strict=True)
        made.append(HeldGroup(base, numbers, trained))
    return made


def first(rows: Iterable[HeldCompletion]) -> dict[str, HeldCompletion]:
    """The first sample of the first problems: id -> completion."""
    samples = (row for row in rows if row.sample == 0)
    return {row.id: row for row in itertools.islice(samples, PROBLEMS_SHOWN)}


def levels(group: HeldGroup, names: Sequence[str]) -> tuple[dict[str, int], Rows]:
    """Level of difficulty -> problems, easiest first, and the accuracies of base and runs.

    More than LEVELS_SHOWN different values are taken together in BINS of about equal size.
    `names` are those of all records; nothing where the problems have no measure of difficulty.
    """
    known = {row.id: row.difficulty for row in group.trained[0] if row.difficulty is not None}
    every = sorted(known.values())
    edges = distinct = sorted(set(every))
    if len(distinct) > LEVELS_SHOWN:
        edges = sorted({every[len(every) * part // BINS - 1] for part in range(1, BINS + 1)})
    inside: dict[str, set[str]] = {}
    for low, edge in itertools.pairwise([-math.inf, *edges]):
        first, *_, last = [value for value in distinct if low < value <= edge] * 2
        name = f"{first:g}" if first == last else f"{first:g} to {last:g}"
        inside[name] = {key for key, value in known.items() if low < value <= edge}
    rows = []
    for name, written in zip(
        ("base", *(names[n] for n in group.runs)), (group.base, *group.trained), strict=True
    ):
        found = ((level, _accuracy(written, ids)) for level, ids in inside.items())
        rows.append((name, {level: a for level, a in found if a is not None}))
    return {name: len(ids) for name, ids in inside.items()}, [row for row in rows if row[1]]


def _accuracy(rows: Sequence[HeldCompletion], ids: set[str]) -> float | None:
    verdicts = [row.strict for row in rows if row.id in ids and row.sample != "greedy"]
    return sum(verdicts) / len(verdicts) if verdicts else None


def _ids(rows: Sequence[HeldCompletion]) -> list[str]:
    return list(dict.fromkeys(row.id for row in rows))
