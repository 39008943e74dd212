"""What the model wrote on held-out problems before and after training, and by difficulty.

From `completions-base.jsonl` and `completions-trained.jsonl` of run folders
(`scorecard.rows`). Runs of one base may share its file: the first of them has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum.report.read import Evaluation, RunRecord
from modicum.runs import read_lines
from modicum.spec import check
from modicum.types import UserError

PROBLEMS_SHOWN = 3
RUNS_SHOWN = 6
LEVELS_SHOWN = 8
BINS = 5  # of difficulty, where there are more levels


@dataclass(frozen=True)
class Written:
    """One graded completion of a held-out problem; `sample` is 0, 1, ... or "greedy"."""

    id: str
    sample: int | str
    question: str
    gold: str
    completion: str
    num_tokens: int
    finished: bool
    strict: bool
    difficulty: float | None = None

    @property
    def about(self) -> str:
        """The verdict and the length in words."""
        verdict = "right" if self.strict else "wrong"
        end = "" if self.finished else ", cut at the limit"
        return f"{verdict}, {self.num_tokens} tokens{end}"


@dataclass(frozen=True)
class Held:
    """The completions of runs that answered the same problems from the same base.

    `runs` are numbers of records, `trained` one tuple for each of them.
    """

    base: tuple[Written, ...]
    runs: tuple[int, ...]
    trained: tuple[tuple[Written, ...], ...]


@dataclass(frozen=True)
class Level:
    """Problems of one difficulty; accuracies of the base (None: not known) and of each run."""

    name: str
    problems: int
    accuracy: tuple[float | None, ...]


def load(file: Path) -> tuple[Written, ...]:
    """The completions of a file, or none where there is no file.

    Raises UserError with the file and line of one that is broken.
    """
    if not file.exists():
        return ()
    return tuple(
        _written(row, f"{file}:{number}") for number, row in enumerate(read_lines(file), start=1)
    )


def held(records: Sequence[RunRecord]) -> list[Held]:
    """The runs that have completions, by the base that they share."""
    groups: dict[tuple[str, str, Evaluation | None, tuple[str, ...]], list[int]] = {}
    found = [load(record.folder / "completions-trained.jsonl") for record in records]
    for number, (record, rows) in enumerate(zip(records, found, strict=True)):
        if rows and record.result is not None:
            ids = tuple(dict.fromkeys(row.id for row in rows))
            result = record.result
            key = (result.model, result.task, result.base, ids)
            groups.setdefault(key, []).append(number)
    return [
        Held(_base([records[n] for n in runs], ids), tuple(runs), tuple(found[n] for n in runs))
        for (_, _, _, ids), runs in groups.items()
    ]


def first(rows: Sequence[Written], count: int = PROBLEMS_SHOWN) -> dict[str, Written]:
    """The first sample of the first problems: id -> completion."""
    chosen = [row for row in rows if row.sample == 0][:count]
    return {row.id: row for row in chosen}


def levels(group: Held) -> list[Level]:
    """Accuracy by difficulty, easiest first; nothing where the problems have no measure of it.

    More than LEVELS_SHOWN different values are taken together in BINS of about equal size.
    """
    known = {row.id: row.difficulty for row in group.trained[0] if row.difficulty is not None}
    every = sorted(known.values())
    distinct = sorted(set(every))
    if len(distinct) <= LEVELS_SHOWN:
        edges = distinct
    else:
        edges = sorted({every[len(every) * part // BINS - 1] for part in range(1, BINS + 1)})
    made: list[Level] = []
    low = float("-inf")
    for edge in edges:
        inside = {key for key, value in known.items() if low < value <= edge}
        values = [value for value in distinct if low < value <= edge]
        name = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
        shares = [_accuracy(rows, inside) for rows in (group.base, *group.trained)]
        made.append(Level(name, len(inside), tuple(shares)))
        low = edge
    return made


def _accuracy(rows: Sequence[Written], ids: set[str]) -> float | None:
    verdicts = [row.strict for row in rows if row.id in ids and row.sample != "greedy"]
    return sum(verdicts) / len(verdicts) if verdicts else None


def _base(records: Sequence[RunRecord], ids: tuple[str, ...]) -> tuple[Written, ...]:
    for record in records:
        rows = load(record.folder / "completions-base.jsonl")
        if rows and tuple(dict.fromkeys(row.id for row in rows)) == ids:
            return rows
    return ()


def _written(row: Mapping[str, Any], where: str) -> Written:
    kinds = {
        "id": str,
        "sample": int | str,
        "question": str,
        "gold": str,
        "completion": str,
        "num_tokens": int,
        "finished": bool,
        "strict": bool,
    }
    missing = [name for name in kinds if name not in row]
    if missing:
        raise UserError(f"{where}: {missing[0]!r} is missing")
    values = {name: check(f"{where}: {name!r}", row[name], kind) for name, kind in kinds.items()}
    level = check(f"{where}: 'difficulty'", row.get("difficulty"), float | None)
    return Written(**values, difficulty=level)
