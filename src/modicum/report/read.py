"""A run folder as data: config, metric columns, samples, completions and the result.

Only `config.toml` and `metrics.jsonl` must be there: a run that still goes on has no result."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from modicum.config import read_toml
from modicum.results import Column, RunResult, fill
from modicum.runs import numbered, open_run, read_object
from modicum.spec import check
from modicum.types import Frozen, UserError

T = TypeVar("T")
Columns = Mapping[str, Column]
LEVELS_SHOWN = 8
BINS = 5  # of difficulty, where there are more levels
Rows = list[tuple[str, dict[str, float]]]  # name -> accuracy by level of difficulty


class LoggedSample(Frozen):
    """One completion of training and its reward; `scores` holds the reward's terms."""

    step: int
    completion: str
    question: str = ""
    gold: str = ""
    reward: float | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    logged: Mapping[str, Any] = field(default_factory=dict)


class HeldCompletion(Frozen):
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
    lenient: bool | None = None


class RunRecord(Frozen):
    """One run folder; `metrics` has columns of one length by step, NaN where a step did not log it."""

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Column]
    samples: tuple[LoggedSample, ...]
    result: RunResult | None
    environment: Mapping[str, Any]

    @cached_property
    def columns(self) -> Columns:
        """The metrics, with the `tokens` and `seconds` until each step's end."""
        found = dict(self.metrics)
        if np.isfinite(seconds := found.get("time/step_seconds", np.empty(0))).any():
            found["seconds"] = np.nancumsum(seconds)
        if "tokens/generated" in found and np.isfinite(found["tokens/generated"]).all():
            found["tokens"] = found["tokens/generated"]
        if "completions/accuracy" in found:  # where the reward does not pay it
            found["reward/accuracy"] = found.pop("completions/accuracy")
        return found

    @property
    def update(self) -> str:
        """The update's expression, of the result or (none yet) of the config."""
        if self.result is not None:
            return self.result.update
        return str(self.config.get("update", self.folder.name))

    def completions(self, of: str) -> tuple[HeldCompletion, ...]:
        """Those of `base` or `trained`; runs of one base may share the file of the first."""
        return tuple(rows(HeldCompletion, self.folder / f"completions-{of}.jsonl"))


def load(folder: str | Path) -> RunRecord:
    """The run in `folder`; UserError that names the file, and the line, where one is broken."""
    folder = open_run(Path(folder)).folder
    config, found = read_toml(folder / "config.toml"), dict[int, dict[str, float | None]]()
    for where, row in numbered(folder / "metrics.jsonl"):
        if "step" not in row:
            raise UserError(f"{where}: 'step' is missing")
        step = check(f"{where}: 'step'", row["step"], int)
        # A resumed run logs the steps after its checkpoint again: the later line holds.
        found[step] = {k: check(f"{where}: {k!r}", v, float | None) for k, v in row.items()}
    ordered = [found[step] for step in sorted(found)]
    names = dict.fromkeys(name for row in ordered for name in row)
    # None becomes NaN.
    metrics = {name: np.array([row.get(name) for row in ordered], dtype=float) for name in names}
    # Of the samples those of the first and of the last step, of which alone reports speak.
    ends: list[list[tuple[str, dict[str, Any]]]] = []
    lines = numbered(folder / "samples.jsonl", optional=True)
    for _, of_step in groupby(lines, lambda line: line[1].get("step")):
        ends = [*ends[:1], list(of_step)]
    samples = tuple(fill(LoggedSample, row, where) for step in ends for where, row in step)
    file = folder / "result.json"
    result = fill(RunResult, read_object(file), str(file)) if file.exists() else None
    environment = read_object(folder / "environment.json", optional=True)
    environment.pop("began_in", None)  # a page that is passed on says nothing of folders
    return RunRecord(folder, config, metrics, samples, result, environment)


def rows(cls: type[T], file: Path) -> Iterator[T]:
    """The lines of a file, read as far as asked for, or none where there is no file."""
    return (fill(cls, row, where) for where, row in numbered(file, optional=True))


def labels(records: Sequence[RunRecord]) -> list[str]:
    """A name for each run: its update, with the seed or the folder where those repeat."""
    names = [record.update for record in records]

    def seed(record: RunRecord) -> str:
        return f"seed {record.config.get('seed') if record.result is None else record.result.seed}"

    for distinguish in (seed, lambda record: record.folder.name):
        pairs = zip(names, records, strict=True)
        names = [f"{n}, {distinguish(r)}" if names.count(n) > 1 else n for n, r in pairs]
    return names


def colours(records: Sequence[RunRecord]) -> list[int]:
    """For each run the number of its update, in order of appearance: seeds share a colour."""
    order = list(dict.fromkeys(record.update for record in records))
    return [order.index(record.update) for record in records]


class HeldGroup(NamedTuple):
    """Completions of the same problems from the same base; `runs` are the numbers of `trained`."""

    base: tuple[HeldCompletion, ...]
    runs: tuple[int, ...]
    trained: tuple[tuple[HeldCompletion, ...], ...]


def held_groups(records: Sequence[RunRecord]) -> list[HeldGroup]:
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


def by_problem(rows: Iterable[HeldCompletion]) -> dict[str, list[HeldCompletion]]:
    """Problem id -> its samples, the greedy one last."""
    found = defaultdict[str, list[HeldCompletion]](list)
    for row in sorted(rows, key=lambda row: row.sample == "greedy"):
        found[row.id].append(row)
    return found


def by_difficulty(group: HeldGroup, names: Sequence[str]) -> tuple[dict[str, int], Rows]:
    """Level of difficulty (many: in bins) -> problems, and the accuracies of base and runs by it."""
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
    rows, shown = [], ("base", *(names[n] for n in group.runs))
    for name, written in zip(shown, (group.base, *group.trained), strict=True):
        drawn = [row for row in written if row.sample != "greedy"]
        found = {level: [r.strict for r in drawn if r.id in ids] for level, ids in inside.items()}
        rows.append((name, {level: sum(v) / len(v) for level, v in found.items() if v}))
    return {name: len(ids) for name, ids in inside.items()}, [row for row in rows if row[1]]


def _ids(rows: Sequence[HeldCompletion]) -> list[str]:
    return list(dict.fromkeys(row.id for row in rows))
