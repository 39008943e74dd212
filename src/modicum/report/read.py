"""A run folder as data: config, metric columns, samples and the result.

`config.toml` and `metrics.jsonl` must be there. `samples.jsonl`, `environment.json` and
`result.json` may be missing: a run that still goes on has no result.
"""

from __future__ import annotations

import json
import re
import tomllib
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from modicum.report import weights
from modicum.spec import check
from modicum.types import UserError

T = TypeVar("T")

HALF = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold


@dataclass(frozen=True)
class Evaluation:
    """Scores on the held-out problems, as fractions; None where one was not measured.

    `accuracy` is over samples and `low` to `high` its 95% interval; `greedy` decodes
    without sampling; `lenient` also takes an unmarked answer; `format` and `truncated`
    are shares of the completions; `length` is their mean in tokens.
    """

    accuracy: float
    low: float | None = None
    high: float | None = None
    greedy: float | None = None
    lenient: float | None = None
    format: float | None = None
    truncated: float | None = None
    length: float | None = None
    num_problems: int | None = None
    samples_per_problem: int | None = None


@dataclass(frozen=True)
class Result:
    """What a finished run wrote about itself (`result.json`)."""

    update: str
    model: str = ""
    task: str = ""
    reward: str = ""
    objective: str = ""
    seed: int | None = None
    steps: int | None = None
    base: Evaluation | None = None
    trained: Evaluation | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    generated_tokens: int | None = None
    change_proof: str | None = None
    agreement_max: float | None = None
    anatomy: weights.Anatomy | None = None


@dataclass(frozen=True)
class Sample:
    """One logged completion and its reward; `scores` holds the reward's terms."""

    step: int
    completion: str
    question: str = ""
    gold: str = ""
    reward: float | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """One run folder.

    `metrics` has a column for each name, float64 of one length, NaN where a step did not
    log it; `metrics["step"]` rises. `environment` is empty when it was not recorded.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, NDArray[np.float64]]
    samples: tuple[Sample, ...]
    result: Result | None
    environment: Mapping[str, Any]

    @property
    def update(self) -> str:
        """The update's expression, of the result or (none yet) of the config."""
        if self.result is not None:
            return self.result.update
        return str(self.config.get("update", self.folder.name))


def load(folder: str | Path) -> RunRecord:
    """The run in `folder`.

    A last line without its line end is skipped (the run was writing it). Raises UserError
    that names the file, and the line where there is one, when one is missing or broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder")
    config_file = folder / "config.toml"
    try:
        config = tomllib.loads(_bytes(config_file).decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{config_file}: {error}") from None
    samples = folder / "samples.jsonl"
    return RunRecord(
        folder=folder,
        config=config,
        metrics=_columns(folder / "metrics.jsonl"),
        samples=tuple(_fill(Sample, row, where) for where, row in _lines(samples))
        if samples.exists()
        else (),
        result=_result(folder / "result.json"),
        environment=_object(folder / "environment.json") or {},
    )


def labels(records: Sequence[RunRecord]) -> list[str]:
    """A name for each run: its update, with the seed or the folder where those repeat."""
    names = [record.update for record in records]
    for distinguish in (_seed, lambda record: record.folder.name):
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


def _seed(record: RunRecord) -> str:
    seed = record.result.seed if record.result is not None else record.config.get("seed")
    return f"seed {seed}"


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file} is missing") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`file:line` and the object of each line that is not blank."""
    lines = _bytes(file).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: an object is wanted, not {type(row).__name__}")
        yield where, row


def _columns(file: Path) -> dict[str, NDArray[np.float64]]:
    rows: dict[int, dict[str, float | None]] = {}
    for where, row in _lines(file):
        if "step" not in row:
            raise UserError(f"{where}: 'step' is missing")
        step = check(f"{where}: 'step'", row["step"], int)
        # A resumed run logs the steps after its checkpoint again: the later line holds.
        rows[step] = {k: check(f"{where}: {k!r}", v, float | None) for k, v in row.items()}
    ordered = [rows[step] for step in sorted(rows)]
    names = dict.fromkeys(name for row in ordered for name in row)
    # None becomes NaN.
    return {name: np.array([row.get(name) for row in ordered], dtype=float) for name in names}


def _object(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        data = json.loads(_bytes(file).decode("utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: an object is wanted, not {type(data).__name__}")
    return data


def _result(file: Path) -> Result | None:
    data = _object(file)
    if data is None:
        return None
    for key in ("base", "trained"):
        value = data.get(key)
        if isinstance(value, dict):
            data[key] = _fill(Evaluation, value, f"{file}: {key}")
    if isinstance(data.get("anatomy"), dict):
        data["anatomy"] = weights.parse(data["anatomy"], f"{file}: anatomy")
    return _fill(Result, data, str(file))


def _fill(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A dataclass from an object of JSON; keys that it does not know are left out."""
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in fields(typing.cast(Any, cls)):
        if item.name in data:
            hint = dict if item.name == "scores" else hints[item.name]
            value = data[item.name]
            if isinstance(value, str):
                value = HALF.sub("\ufffd", value)
            values[item.name] = check(f"{where}: {item.name!r}", value, hint)
        elif item.default is item.default_factory is MISSING:
            raise UserError(f"{where}: {item.name!r} is missing")
    return cls(**values)
