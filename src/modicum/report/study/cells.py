"""What a study's run folders hold, thinned to what its report shows.

`compact` reads the folders; what it gives can be kept as `curves.json`, so that a study
whose run folders are elsewhere still has its curves, samples and versions. Per arm:

    seeds        seed -> columns of one length: step, tokens, seconds (cumulative) and
                 metrics, each a mean over a bin of steps where there are many
    evaluations  seed -> [[step, accuracy], ...] on held-out problems after the start
    config       the resolved settings of its first seed
    anatomy      what changed in the weights of its first finished seed, and the proof
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modicum import runs
from modicum.report import curves, read
from modicum.report.read import RunRecord
from modicum.report.study.analysis import Analysis, Arm
from modicum.types import UserError

FORMAT = 1
POINTS = 100  # of a curve: more than a figure can show
DIGITS = 4  # of a number that is only drawn
PROBLEMS_SHOWN, ARMS_SHOWN, LETTERS_KEPT = 3, 6, 1500
RULE = (
    "The first {problems} problems of the {split} set in its own order, and of each the first"
    " completion sampled at the evaluation's temperature; the base, the control and the arms"
    " that follow it in study.toml; the lowest seed that finished. Not selected by outcome."
    " Right: the answer is right and marked as asked."
)
METRICS = (
    "reward/mean",
    "completions/length_mean",
    "completions/truncated",
    "completions/distinct",
    "groups/no_signal",
    "policy/entropy",
    "policy/kl",
    "policy/clip_fraction",
    "policy/grad_norm",
)


def compact(folder: Path, analysis: Analysis) -> dict[str, Any]:
    """What the run folders under `folder` hold, as JSON values; `arms` of those that are there.

    Raises UserError for a run folder that is there and cannot be read.
    """
    arms: dict[str, Any] = {}
    environments: dict[str, Mapping[str, Any]] = {}
    for arm in analysis.arms:
        records = _records(folder, arm)
        if records:
            arms[arm.slug] = _arm(records)
            found = [record.environment for record in records.values() if record.environment]
            environments |= {json.dumps(e, sort_keys=True): e for e in found}
    return {
        "format": FORMAT,
        "arms": arms,
        "environment": dict(next(iter(environments.values()), {})),
        "environments": len(environments),
        "samples": _samples(folder, analysis),
    }


def thin(values: NDArray[np.float64], last: bool = False, points: int = POINTS) -> list[Any]:
    """At most `points` numbers: the mean of each bin (NaN left out) or its `last` value."""
    bins = np.array_split(values, min(points, len(values)) or 1)
    return [_number(part[-1] if last else _mean(part)) for part in bins if part.size]


def _mean(part: NDArray[np.float64]) -> float:
    seen = part[np.isfinite(part)]
    return float(seen.mean()) if seen.size else math.nan


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _records(folder: Path, arm: Arm) -> dict[str, RunRecord]:
    """Seed -> the run folder, for those of the arm's that have logged a step.

    A run that stopped early would cut the curves of the others short: it is left out, unless
    no seed finished.
    """
    found: dict[str, RunRecord] = {}
    for seed, place in arm.folders.items():
        if arm.by_seed and seed not in arm.by_seed:
            continue
        path = inside(folder, place)
        if path is not None and (path / "metrics.jsonl").is_file():
            record = read.load(path)
            if len(record.metrics.get("step", ())):
                found[seed] = record
    return found


def inside(folder: Path, place: str) -> Path | None:
    """`place` below `folder`, or None where it leads out of it."""
    path = folder / place
    return path if path.resolve().is_relative_to(folder.resolve()) else None


def _arm(records: Mapping[str, RunRecord]) -> dict[str, Any]:
    first = next(iter(records.values()))
    done = {s: r.result for s, r in records.items() if r.result and r.result.anatomy}
    seed, result = next(iter(done.items()), (None, None))
    raw = {} if seed is None else json.loads((records[seed].folder / "result.json").read_bytes())
    kept = {k: v for k, v in raw.get("anatomy", {}).items() if k != "layers"}
    return {
        "seeds": {seed: _columns(record) for seed, record in records.items()},
        "evaluations": {
            seed: found for seed, r in records.items() if (found := _evaluations(r.folder))
        },
        "config": {k: v for k, v in first.config.items() if k not in ("out", "seed")},
        "anatomy": kept and {"seed": seed, **kept},
        "change_proof": "" if result is None else result.change_proof or "",
    }


def _columns(record: RunRecord) -> dict[str, list[Any]]:
    metrics = record.metrics
    missing = np.full(len(metrics["step"]), np.nan)
    terms = [name for name in metrics if name.startswith("reward/") and name != "reward/errors"]
    columns = {"step": thin(metrics["step"] + 1, last=True)}
    for axis in ("tokens", "seconds"):
        total = curves.against(record, axis)
        columns[axis] = thin(missing if total is None else total, last=True)
    for name in dict.fromkeys((*terms, *METRICS)):
        column = metrics.get(name, missing)
        if np.isfinite(column).any():
            columns[name] = thin(column)
    return columns


def _evaluations(folder: Path) -> list[list[float]]:
    path = folder / "evaluations.jsonl"
    if not path.is_file():
        return []
    lines = [(line.get("step"), line.get("accuracy")) for line in runs.read_lines(path)]
    return [
        [step, float(f"{accuracy:.{DIGITS}g}")]
        for step, accuracy in lines
        if isinstance(step, int) and step >= 0 and isinstance(accuracy, float | int)
    ]


def _samples(folder: Path, analysis: Analysis) -> dict[str, Any]:
    """The same held-out problems as the base and the first arms answered them."""
    texts = {"": _first(_base_files(folder, analysis))}
    for arm in analysis.arms[:ARMS_SHOWN]:
        done = [inside(folder, place) for seed, place in arm.folders.items() if seed in arm.by_seed]
        files = [path / "completions-trained.jsonl" for path in done if path is not None]
        texts[arm.slug] = _first(files[:1])
    texts = {name: found for name, found in texts.items() if found}
    ids = list(next(iter(texts.values()), {}))[:PROBLEMS_SHOWN]
    problems = [
        {
            "question": next(rows[i]["question"] for rows in texts.values() if i in rows),
            "gold": next(rows[i]["gold"] for rows in texts.values() if i in rows),
            "texts": {
                name: {key: rows[i][key] for key in ("completion", "strict")}
                for name, rows in texts.items()
                if i in rows
            },
        }
        for i in ids
    ]
    rule = RULE.format(problems=len(ids), split=analysis.split)
    return {"rule": rule, "problems": problems} if problems else {}


def _base_files(folder: Path, analysis: Analysis) -> list[Path]:
    """Where the base's completions may be: its own evaluation, or a run of the control."""
    own = sorted((folder / "cells" / "base-test").glob("completions*.jsonl"))
    runs_of = next(arm for arm in analysis.arms if arm.name == analysis.control).folders.values()
    places = [path for place in runs_of if (path := inside(folder, place)) is not None]
    return [*own, *(path / "completions-base.jsonl" for path in places)]


def _first(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Problem id -> its first sample, of the first problems in the first file that is there."""
    path = next((file for file in files if file.is_file()), None)
    found: dict[str, dict[str, Any]] = {}
    for row in _lines(path) if path is not None else ():
        if row.get("sample") == 0:
            found[str(row.get("id"))] = {
                "question": str(row.get("question", ""))[:LETTERS_KEPT],
                "gold": str(row.get("gold", ""))[:LETTERS_KEPT],
                "completion": str(row.get("completion", ""))[:LETTERS_KEPT],
                "strict": bool(row.get("strict")),
            }
        if len(found) == PROBLEMS_SHOWN:
            break
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, read only as far as they are asked for."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                raise UserError(f"{path}:{number}: not a JSON object") from None
            if isinstance(row, dict):
                yield row
