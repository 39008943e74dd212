"""What a study's run folders hold, thinned to what its report shows.

`compact` reads the folders; what it gives can be kept as `curves.json` (`read.CurvesFile`), so
that a study whose run folders are elsewhere still has its curves, samples and versions. Columns
of a seed are of one length: step, tokens and seconds (cumulative), and metrics, each a mean over
a bin of steps where there are many. The config is that of an arm's first seed, the anatomy and
the proof those of its first finished one.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modicum.logged import METRICS
from modicum.report import read
from modicum.report.read import RunRecord
from modicum.report.words import say
from modicum.results import Analysis, ArmResult, Column
from modicum.runs import numbered, read_object

FORMAT = 1
POINTS = 100  # of a curve: more than a figure can show
DIGITS = 4  # of a number that is only drawn
PROBLEMS_SHOWN, ARMS_SHOWN, LETTERS_KEPT = 3, 6, 1500


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


def thin(values: Column, last: bool = False, points: int = POINTS) -> list[Any]:
    """At most `points` numbers: the mean of each bin (NaN left out) or its `last` value."""
    bins = np.array_split(values, min(points, len(values)) or 1)
    return [_number(part[-1] if last else _mean(part)) for part in bins if part.size]


def _mean(part: Column) -> float:
    seen = part[np.isfinite(part)]
    return float(seen.mean()) if seen.size else math.nan


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _records(folder: Path, arm: ArmResult) -> dict[str, RunRecord]:
    """Seed -> the run folder, for those of the arm's that have logged a step.

    A run that stopped early would cut the curves of the others short: it is left out, unless
    no seed finished.
    """
    found: dict[str, RunRecord] = {}
    for seed, place in arm.folders.items():
        path = inside(folder, place)
        done = not arm.by_seed or seed in arm.by_seed
        if done and path is not None and (path / "metrics.jsonl").is_file():
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
    done = ((s, r) for s, r in records.items() if r.result and r.result.anatomy)
    seed, record = next(done, (None, None))
    # As it stands in the file: with more than a report reads, but for the layers.
    raw = {} if record is None else read_object(record.folder / "result.json")
    kept = {k: v for k, v in raw.get("anatomy", {}).items() if k != "layers"}
    return {
        "seeds": {seed: _columns(record) for seed, record in records.items()},
        "evaluations": {
            seed: found for seed, r in records.items() if (found := _evaluations(r.folder))
        },
        "config": {k: v for k, v in first.config.items() if k not in ("out", "seed")},
        "anatomy": kept and {"seed": seed, **kept},
        "change_proof": raw.get("change_proof") or "",
    }


def _columns(record: RunRecord) -> dict[str, list[Any]]:
    metrics = record.columns
    missing = np.full(len(metrics["step"]), np.nan)
    terms = [name for name in metrics if name.startswith("reward/") and name != "reward/errors"]
    columns = {"step": thin(metrics["step"] + 1, last=True)}
    columns |= {a: thin(metrics.get(a, missing), last=True) for a in ("tokens", "seconds")}
    for name in dict.fromkeys((*terms, *(m.key for m in METRICS.values() if m.short))):
        column = metrics.get(name, missing)
        if np.isfinite(column).any():
            columns[name] = thin(column)
    return columns


def _evaluations(folder: Path) -> list[list[float]]:
    path = folder / "evaluations.jsonl"
    return [
        [line["step"], float(f"{line['accuracy']:.{DIGITS}g}")]
        for _, line in (numbered(path) if path.is_file() else ())
        if isinstance(line.get("step"), int)
        and line["step"] >= 0
        and isinstance(line.get("accuracy"), float | int)
    ]


def _samples(folder: Path, analysis: Analysis) -> dict[str, Any]:
    """The same held-out problems as the base and the first arms answered them."""
    texts = {"": _first(_base_files(folder, analysis))}
    for arm in analysis.arms[:ARMS_SHOWN]:
        done = [inside(folder, place) for seed, place in arm.folders.items() if seed in arm.by_seed]
        texts[arm.slug] = _first([p / "completions-trained.jsonl" for p in done if p][:1])
    texts = {name: found for name, found in texts.items() if found}
    problems = []
    for key in list(next(iter(texts.values()), {}))[:PROBLEMS_SHOWN]:
        rows = {name: found[key] for name, found in texts.items() if key in found}
        first = next(iter(rows.values()))
        shown = {n: {k: row[k] for k in ("completion", "strict")} for n, row in rows.items()}
        problems.append({"question": first["question"], "gold": first["gold"], "texts": shown})
    rule = say("rule", problems=len(problems), split=analysis.split)
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
    rows = (row for _, row in (numbered(path) if path is not None else ()))
    chosen = itertools.islice((row for row in rows if row.get("sample") == 0), PROBLEMS_SHOWN)
    return {
        str(row.get("id")): {
            **{k: str(row.get(k, ""))[:LETTERS_KEPT] for k in ("question", "gold", "completion")},
            "strict": bool(row.get("strict")),
        }
        for row in chosen
    }
