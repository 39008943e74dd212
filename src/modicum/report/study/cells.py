"""What a study's run folders hold, thinned to what its report shows.

`compact` reads the folders; what it gives can be kept as `curves.json` (`read.CurvesFile`), so
that a study whose run folders are elsewhere still has its curves, samples and versions. Columns
of a seed are of one length: step, tokens and seconds (cumulative), and metrics, each a mean over
a bin of steps where there are many. The config is that of an arm's first seed, the anatomy and
the proof those of its first finished one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modicum.logged import METRICS
from modicum.report import held, read
from modicum.report.document import LETTERS_SHOWN
from modicum.report.read import HeldCompletion, RunRecord
from modicum.report.words import say
from modicum.results import Analysis, ArmResult, Column
from modicum.runs import numbered, read_object

FORMAT = 1
POINTS = 100  # of a curve: more than a figure can show
DIGITS = 4  # of a number that is only drawn
ARMS_SHOWN = 6


def compact(folder: Path, analysis: Analysis) -> dict[str, Any]:
    """What the run folders under `folder` hold, as JSON values; `arms` of those that are there.

    Raises UserError for a run folder that is there and cannot be read.
    """
    arms = {arm.slug: _records(folder, arm) for arm in analysis.arms}
    found = [r.environment for records in arms.values() for r in records.values() if r.environment]
    return {
        "format": FORMAT,
        "arms": {slug: _arm(records) for slug, records in arms.items() if records},
        "environment": dict(found[0]) if found else {},
        "environments": sum(found.index(e) == number for number, e in enumerate(found)),
        "samples": _samples(folder, analysis),
    }


def thin(values: Column, last: bool = False, points: int = POINTS) -> list[float | int | None]:
    """At most `points` numbers: the mean of each bin (NaN left out) or its `last` value."""

    def one(part: Column) -> float | int | None:
        seen = part[-1:] if last else part[np.isfinite(part)]
        value = float(seen.mean()) if seen.size else math.nan
        short = float(f"{value:.{DIGITS}g}")
        return None if not math.isfinite(value) else int(short) if short.is_integer() else short

    bins = np.array_split(values, min(points, len(values)) or 1)
    return [one(part) for part in bins if part.size]


def _records(folder: Path, arm: ArmResult) -> dict[str, RunRecord]:
    """Seed -> the run folder, for those of the arm's that have logged a step.

    A run that stopped early would cut the curves of the others short: it is left out, unless
    no seed finished.
    """
    found = {
        seed: read.load(path)
        for seed, path in _inside(folder, arm).items()
        if (not arm.by_seed or seed in arm.by_seed) and (path / "metrics.jsonl").is_file()
    }
    return {seed: run for seed, run in found.items() if len(run.metrics.get("step", ()))}


def _inside(folder: Path, arm: ArmResult) -> dict[str, Path]:
    """Seed -> its place below `folder`; what leads out of it is left out."""
    root, places = folder.resolve(), {s: folder / place for s, place in arm.folders.items()}
    return {s: path for s, path in places.items() if path.resolve().is_relative_to(root)}


def _arm(records: Mapping[str, RunRecord]) -> dict[str, Any]:
    first = next(iter(records.values()))
    done = ((s, r) for s, r in records.items() if r.result and r.result.anatomy)
    seed, record = next(done, (None, None))
    # As it stands in the file: with more than a report reads, but for the layers.
    raw = {} if record is None else read_object(record.folder / "result.json")
    kept = {k: v for k, v in raw.get("anatomy", {}).items() if k != "layers"}
    evaluations = {seed: _evaluations(record.folder) for seed, record in records.items()}
    return {
        "seeds": {seed: _columns(record.columns) for seed, record in records.items()},
        "evaluations": {seed: found for seed, found in evaluations.items() if found},
        "config": {k: v for k, v in first.config.items() if k not in ("out", "seed")},
        "anatomy": kept and {"seed": seed, **kept},
        "change_proof": raw.get("change_proof") or "",
    }


def _columns(metrics: read.Columns) -> dict[str, list[Any]]:
    missing = np.full(len(metrics["step"]), np.nan)
    terms = [name for name in metrics if name.startswith("reward/") and name != "reward/errors"]
    columns = {"step": thin(metrics["step"] + 1, last=True)}
    columns |= {a: thin(metrics.get(a, missing), last=True) for a in ("tokens", "seconds")}
    shown = dict.fromkeys((*terms, *(m.key for m in METRICS.values() if m.short)))
    known = {name: metrics[name] for name in shown if name in metrics}
    return columns | {n: thin(column) for n, column in known.items() if np.isfinite(column).any()}


def _evaluations(folder: Path) -> list[list[float]]:
    path = folder / "evaluations.jsonl"
    pairs = (
        (row.get("step"), row.get("accuracy"))
        for _, row in (numbered(path) if path.is_file() else ())
    )
    return [
        [step, float(f"{accuracy:.{DIGITS}g}")]
        for step, accuracy in pairs
        if isinstance(step, int) and step >= 0 and isinstance(accuracy, float | int)
    ]


def _samples(folder: Path, analysis: Analysis) -> dict[str, Any]:
    """The same held-out problems as the base and the first arms answered them."""
    # The base's completions: its own evaluation, or a run of the control.
    own = sorted((folder / "cells" / "base-test").glob("completions*.jsonl"))
    control = next(arm for arm in analysis.arms if arm.name == analysis.control)
    runs_of = _inside(folder, control).values()
    texts = {"": _first([*own, *(path / "completions-base.jsonl" for path in runs_of)])}
    for arm in analysis.arms[:ARMS_SHOWN]:
        done = [path for seed, path in _inside(folder, arm).items() if seed in arm.by_seed]
        texts[arm.slug] = _first([path / "completions-trained.jsonl" for path in done[:1]])
    texts = {name: found for name, found in texts.items() if found}
    problems = []
    for key, row in next(iter(texts.values()), {}).items():
        rows = {name: found[key] for name, found in texts.items() if key in found}
        shown = {
            name: {"completion": row.completion[:LETTERS_SHOWN], "strict": row.strict}
            for name, row in rows.items()
        }
        asked = {"question": row.question[:LETTERS_SHOWN], "gold": row.gold[:LETTERS_SHOWN]}
        problems.append({**asked, "texts": shown})
    rule = say("rule", problems=len(problems), split=analysis.split)
    return {"rule": rule, "problems": problems} if problems else {}


def _first(files: Sequence[Path]) -> dict[str, HeldCompletion]:
    """Problem id -> its first sample, of the first problems in the first file that is there."""
    path = next((file for file in files if file.is_file()), None)
    return {} if path is None else held.first(read.rows(HeldCompletion, path))
