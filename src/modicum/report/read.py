"""A run folder as data: config, metric columns, samples, completions and the result.

`config.toml` and `metrics.jsonl` must be there. `samples.jsonl`, `environment.json`,
`completions-*.jsonl` and `result.json` may be missing: a run that still goes on has no result.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from modicum.config import read_toml
from modicum.results import Column, RunResult, fill
from modicum.runs import numbered, read_object
from modicum.spec import check
from modicum.types import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class LoggedSample:
    """One completion of training and its reward; `scores` holds the reward's terms."""

    step: int
    completion: str
    question: str = ""
    gold: str = ""
    reward: float | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldCompletion:
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
class RunRecord:
    """One run folder.

    `metrics` has a column for each name, float64 of one length, NaN where a step did not
    log it; `metrics["step"]` rises. `environment` is empty when it was not recorded.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Column]
    samples: tuple[LoggedSample, ...]
    result: RunResult | None
    environment: Mapping[str, Any]

    @property
    def update(self) -> str:
        """The update's expression, of the result or (none yet) of the config."""
        if self.result is not None:
            return self.result.update
        return str(self.config.get("update", self.folder.name))

    @property
    def seed(self) -> Any:
        """Of the result or (none yet) of the config."""
        return self.config.get("seed") if self.result is None else self.result.seed

    def completions(self, of: str) -> tuple[HeldCompletion, ...]:
        """Those of `base` or `trained`; runs of one base may share the file of the first."""
        return rows(HeldCompletion, self.folder / f"completions-{of}.jsonl")


def load(folder: str | Path) -> RunRecord:
    """The run in `folder`.

    A last line without its line end is skipped (the run was writing it). Raises UserError
    that names the file, and the line where there is one, when one is missing or broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder")
    result, environment = (folder / f"{name}.json" for name in ("result", "environment"))
    return RunRecord(
        folder=folder,
        config=read_toml(folder / "config.toml"),
        metrics=_columns(folder / "metrics.jsonl"),
        samples=_ends(folder / "samples.jsonl"),
        result=fill(RunResult, read_object(result), str(result)) if result.exists() else None,
        environment=read_object(environment) if environment.exists() else {},
    )


def rows(cls: type[T], file: Path) -> tuple[T, ...]:
    """The lines of a file, or none where there is no file."""
    lines = numbered(file) if file.exists() else ()
    return tuple(fill(cls, row, where) for where, row in lines)


def _ends(file: Path) -> tuple[LoggedSample, ...]:
    """The completions of the first and of the last step, of which alone reports speak."""
    kept: list[list[tuple[str, dict[str, Any]]]] = []
    lines = numbered(file) if file.exists() else iter(())
    for _, of_step in groupby(lines, lambda line: line[1].get("step")):
        kept = [*kept[:1], list(of_step)]
    return tuple(fill(LoggedSample, row, where) for step in kept for where, row in step)


def labels(records: Sequence[RunRecord]) -> list[str]:
    """A name for each run: its update, with the seed or the folder where those repeat."""
    names = [record.update for record in records]
    for distinguish in (lambda record: f"seed {record.seed}", lambda record: record.folder.name):
        repeated = {name for name, count in Counter(names).items() if count > 1}
        names = [
            f"{name}, {distinguish(record)}" if name in repeated else name
            for name, record in zip(names, records, strict=True)
        ]
    return names


def colours(records: Sequence[RunRecord]) -> list[int]:
    """For each run the number of its update, in order of appearance: seeds share a colour."""
    order = {update: i for i, update in enumerate(dict.fromkeys(r.update for r in records))}
    return [order[record.update] for record in records]


def _columns(file: Path) -> dict[str, Column]:
    found: dict[int, dict[str, float | None]] = {}
    for where, row in numbered(file):
        if "step" not in row:
            raise UserError(f"{where}: 'step' is missing")
        step = check(f"{where}: 'step'", row["step"], int)
        # A resumed run logs the steps after its checkpoint again: the later line holds.
        found[step] = {k: check(f"{where}: {k!r}", v, float | None) for k, v in row.items()}
    ordered = [found[step] for step in sorted(found)]
    names = dict.fromkeys(name for row in ordered for name in row)
    # None becomes NaN.
    return {name: np.array([row.get(name) for row in ordered], dtype=float) for name in names}
