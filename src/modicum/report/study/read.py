"""A study folder as data: its analysis, its settings and what its run folders hold.

Where run folders are missing, `curves.json` (what `compact` made of them) takes their place. Columns
of a seed are of one length: step, tokens and seconds (cumulative), and metrics, each a mean over a bin
of steps where there are many. Families of arms, kinds of their updates, have the colours and a marker each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modicum.config import read_toml
from modicum.logged import METRICS
from modicum.report import read
from modicum.report.document import LETTERS_SHOWN
from modicum.report.read import Columns, HeldCompletion, RunRecord
from modicum.report.style import INK, MARKERS, MUTED, SERIES, Look
from modicum.report.words import say
from modicum.results import Analysis, Anatomy, ArmResult, Column, fill
from modicum.runs import read_lines, read_object
from modicum.types import Frozen, UserError

FORMAT = 1
POINTS = 100  # of a curve: more than a figure can show
DIGITS = 4  # of a number that is only drawn
ARMS_SHOWN = 6  # whose texts are kept: the control and the best
PROBLEMS_KEPT, LETTERS_KEPT = 40, 200_000  # of texts


class ShownText(Frozen):
    """What was written on a problem, and whether its marked answer is right."""

    completion: str
    strict: bool = False
    lenient: bool | None = None


class ShownProblem(Frozen):
    """A held-out problem; `texts` by an arm's slug, that of the base under ""."""

    question: str
    gold: str
    texts: Mapping[str, ShownText]


class ShownSamples(Frozen):
    """Completions of several arms on the same problems, and how they were chosen."""

    rule: str = ""
    problems: tuple[ShownProblem, ...] = ()


class ArmCurves(Frozen):
    """What an arm's runs logged, by seed: columns (NaN: not there), and (step, accuracy).

    The config is that of the first seed, the anatomy and the proof of the first finished one."""

    seeds: Mapping[str, Columns]
    evaluations: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    anatomy: Anatomy | None = None
    change_proof: str = ""


class CurvesFile(Frozen):
    """`curves.json`: what the report shows of the runs, by an arm's slug."""

    format: int
    arms: Mapping[str, ArmCurves] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)  # of the first run
    environments: int = 0  # how many different ones the runs recorded
    samples: ShownSamples = ShownSamples()


class StudyRecord(NamedTuple):
    """A study folder; `runs` holds what its run folders or their copy do."""

    analysis: Analysis
    settings: Mapping[str, Any]
    runs: CurvesFile
    files: tuple[Path, ...] = ()  # that it was read from

    @property
    def curves(self) -> dict[str, ArmCurves]:
        """By slug, in the order of the arms, of those whose runs or copy were found."""
        arms, found = self.analysis.arms, self.runs.arms
        return {arm.slug: found[arm.slug] for arm in arms if arm.slug in found}

    @property
    def control(self) -> ArmResult:
        """The arm that the others are compared with."""
        return next(arm for arm in self.analysis.arms if arm.name == self.analysis.control)


def load(folder: str | Path) -> StudyRecord:
    """The study in `folder`; UserError that names the file when one is missing or broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a study folder")
    file, stored, design = (folder / n for n in ("analysis.json", "curves.json", "study.toml"))
    if not file.is_file():
        raise UserError(f"{file} is missing: the study has not been analysed yet")
    analysis = Analysis.from_json(read_object(file), str(file))
    data = read_object(stored) if stored.is_file() else {"format": FORMAT}
    if data.get("format") != FORMAT:
        raise UserError(f"{stored}: 'format' is {data.get('format')!r}, not {FORMAT}")
    fresh = compact(folder, analysis)
    arms = {**data.get("arms", {}), **fresh["arms"]}
    data |= {name: value for name, value in fresh.items() if value}
    # A run without an anatomy has an empty one there.
    data["arms"] = {slug: {k: v for k, v in arm.items() if v} for slug, arm in arms.items()}
    runs = fill(CurvesFile, data, str(stored))
    for slug, curves in runs.arms.items():
        for seed, columns in curves.seeds.items():
            if "step" not in columns or len({len(column) for column in columns.values()}) > 1:
                why = f"{slug}: the columns of seed {seed} are not of one length"
                raise UserError(f"{stored}: {why}")
    settings = read_toml(design) if design.is_file() else {}
    return StudyRecord(analysis, settings, runs, (file, stored, design))


def compact(folder: Path, analysis: Analysis) -> dict[str, Any]:
    """What the run folders that are there hold, as JSON values; UserError for unreadable ones."""
    arms: dict[str, dict[str, RunRecord]] = {}
    for arm in analysis.arms:
        # A run that stopped early would cut the curves of the others short: it is left out,
        # unless no seed finished.
        records = {
            seed: read.load(path)
            for seed, path in _inside(folder, arm).items()
            if (not arm.by_seed or seed in arm.by_seed) and (path / "metrics.jsonl").is_file()
        }
        arms[arm.slug] = {s: r for s, r in records.items() if len(r.metrics.get("step", ()))}
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
    evaluations: dict[str, list[list[float]]] = {}
    for number, run in records.items():
        lines = read_lines(run.folder / "evaluations.jsonl", optional=True)
        evaluations[number] = [
            [step, float(f"{accuracy:.{DIGITS}g}")]
            for step, accuracy in ((line.get("step"), line.get("accuracy")) for line in lines)
            if isinstance(step, int) and step >= 0 and isinstance(accuracy, float | int)
        ]
    return {
        "seeds": {seed: _columns(record.columns) for seed, record in records.items()},
        "evaluations": {seed: found for seed, found in evaluations.items() if found},
        "config": {k: v for k, v in first.config.items() if k not in ("out", "seed")},
        "anatomy": kept and {"seed": seed, **kept},
        "change_proof": raw.get("change_proof") or "",
    }


def _columns(metrics: Columns) -> dict[str, list[Any]]:
    missing = np.full(len(metrics["step"]), np.nan)
    terms = [name for name in metrics if name.startswith("reward/") and name != "reward/errors"]
    columns = {"step": thin(metrics["step"] + 1, last=True)}
    columns |= {a: thin(metrics.get(a, missing), last=True) for a in ("tokens", "seconds")}
    shown = dict.fromkeys((*terms, *(m.key for m in METRICS.values() if m.short)))
    known = {name: metrics[name] for name in shown if name in metrics}
    return columns | {n: thin(column) for n, column in known.items() if np.isfinite(column).any()}


def _samples(folder: Path, analysis: Analysis) -> dict[str, Any]:
    # The base's completions: its own evaluation, or a run of the control.
    own = sorted((folder / "cells" / "base-test").glob("completions*.jsonl"))
    control = next(arm for arm in analysis.arms if arm.name == analysis.control)
    runs_of = _inside(folder, control).values()
    texts = {"": _first([*own, *(path / "completions-base.jsonl" for path in runs_of)])}
    for arm in shown(analysis):
        done = [path for seed, path in _inside(folder, arm).items() if seed in arm.by_seed]
        texts[arm.slug] = _first([path / "completions-trained.jsonl" for path in done[:1]])
    texts = {name: found for name, found in texts.items() if found}
    problems, letters, cut = [], 0, slice(LETTERS_SHOWN)
    for key, row in next(iter(texts.values()), {}).items():
        if letters > LETTERS_KEPT:
            break
        rows = {name: found[key] for name, found in texts.items() if key in found}
        kept = {
            slug: asdict(ShownText(r.completion[cut], r.strict, r.lenient))
            for slug, r in rows.items()
        }
        letters += sum(len(text["completion"]) for text in kept.values())
        problems.append({"question": row.question[cut], "gold": row.gold[cut], "texts": kept})
    rule = say("rule", problems=len(problems), split=analysis.split)
    return {"rule": rule, "problems": problems} if problems else {}


def _first(files: Sequence[Path]) -> dict[str, HeldCompletion]:
    """Problem id -> its first sample, of the first problems in the first file that is there."""
    path = next((file for file in files if file.is_file()), None)
    rows = () if path is None else read.rows(HeldCompletion, path)
    return {row.id: row for row in islice((r for r in rows if r.sample == 0), PROBLEMS_KEPT)}


def shown(analysis: Analysis) -> list[ArmResult]:
    """The arms whose texts are kept: the control, then the best by their result; no placebos."""
    rivals = [arm for arm in ranked(analysis) if not arm.placebo]
    return sorted(rivals, key=lambda arm: arm.name != analysis.control)[:ARMS_SHOWN]


class Family(NamedTuple):
    """A kind of arm: its name, the number of its colour (None: not a series) and its look."""

    name: str
    series: int | None
    colour: str
    marker: str


CONTROL = Family("control", None, INK, "*")
NUMBERS = {"adapters": 1, "schedules, masks": 3, "optimizers": 4, "layers": 0, "parts of layers": 2}
OTHER = Family("other settings", 5, SERIES[5], MARKERS[5])
KINDS = {"control": CONTROL}
KINDS |= {name: Family(name, n, SERIES[n], MARKERS[n]) for name, n in NUMBERS.items()}
KINDS |= {"other": OTHER, "placebo": Family("placebo", None, MUTED, "X")}


def family(analysis: Analysis, arm: ArmResult) -> Family:
    """The family of an arm of a study."""
    name = "control" if arm.name == analysis.control else "placebo" if arm.placebo else arm.kind
    return KINDS.get(name, OTHER)


def looks(analysis: Analysis) -> list[Look]:
    """The families of a study's arms for a legend, the control first."""
    found = {family(analysis, arm) for arm in analysis.arms}
    return [(k.name, k.colour, k.marker, "") for k in KINDS.values() if k in found]


def ranked(analysis: Analysis) -> list[ArmResult]:
    """The arms by difference (the control's is 0), the largest first; then placebos, failed ones."""

    def place(arm: ArmResult) -> tuple[bool, bool, float]:
        control = arm.name == analysis.control
        gap = 0.0 if control else arm.difference.mean if arm.difference else None
        return gap is None, arm.placebo, -(gap or 0.0)

    return sorted(analysis.arms, key=place)
