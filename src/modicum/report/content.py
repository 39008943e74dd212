"""What a report of runs says, before it is a page or Markdown."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modicum.report import completions, figures, frame, maps, tables, training, weights
from modicum.report.completions import Held, Level, Written
from modicum.report.frame import Cell, Table, printable
from modicum.report.read import RunRecord, Sample, colours, labels
from modicum.report.tables import Row, percent, share

SAMPLES_SHOWN = 2
LETTERS_SHOWN = 1500

INTERVALS = (
    "The samples of one problem are averaged to one score; the interval is the 95% t-interval of"
    " the mean of these scores over problems, clipped to 0 and 100%. So several samples of a"
    " problem do not count as independent evidence. When every score is 0, or every score is 1,"
    " Wilson's interval takes its place. Greedy accuracy is one completion per problem, without"
    " sampling, and is shown beside it, not as the main figure."
)
LUCK = (
    "The intervals cover the choice of problems and the noise of sampling, but not the luck of a"
    " training seed"
)
ONE_SEED = (
    f"There is one run per update. {LUCK}: they compare these trained models, not the methods."
    " Overlapping intervals do not show that two updates are equal."
)


@dataclass(frozen=True)
class Settings:
    """Settings that all runs share (name -> value) and those that differ."""

    shared: Mapping[str, str]
    different: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Answers:
    """One held-out problem and what each model wrote: label, series (None: base), completion."""

    question: str
    gold: str
    written: tuple[tuple[str, int | None, Written], ...]


@dataclass(frozen=True)
class Ends:
    """Training samples of one run at its first and its last logged step."""

    label: str
    series: int
    steps: tuple[tuple[int, tuple[Sample, ...]], ...]


@dataclass(frozen=True)
class Content:
    """Everything that is said about some runs; empty where there is nothing to say."""

    title: str
    headline: str
    names: tuple[str, ...]
    unfinished: tuple[str, ...]
    size: str
    intervals: tuple[str, ...]
    results: Table | None
    details: Table | None
    curves: Table | None
    levels: Table | None
    changes: Table | None
    figures: tuple[frame.Figure, ...]
    answers: tuple[Answers, ...]
    more_runs: int
    """Runs whose completions are left out."""
    samples: tuple[Ends, ...]
    proofs: tuple[tuple[str, str], ...]
    settings: Settings
    settings_table: Table | None
    versions: Settings
    versions_table: Table | None
    repeat: tuple[str, ...]


def gather(records: Sequence[RunRecord], title: str) -> Content:
    """All that is to be said about `records`; its figures are not drawn yet."""
    rows, names = tables.results(records), labels(records)
    # One run of each update: its seeds look alike.
    firsts = {row.colour: row for row in reversed(rows)}
    changes = [(row.label, row.result.anatomy) for _, row in sorted(firsts.items())]
    groups = completions.held(records)
    found = completions.levels(groups[0]) if len(groups) == 1 else []
    shown = [names[number] for number in groups[0].runs] if found else []
    bases = sorted({row.result.base.accuracy for row in rows if row.result.base is not None})
    drawings = [
        *figures.figures(rows),
        *figures.by_level([(level.name, level.accuracy) for level in found], shown),
        *training.figures(records, bases),
        *_maps(changes),
    ]
    answered = {number for group in groups for number in group.runs[: completions.RUNS_SHOWN]}
    every = {number for group in groups for number in group.runs}
    samples = tuple(
        Ends(name, colour, pick(record.samples))
        for n, (name, colour, record) in enumerate(
            zip(names, colours(records), records, strict=True)
        )
        if n not in every and record.samples
    )
    settings = compare([record.config for record in records])
    versions = compare([record.environment for record in records])
    return Content(
        title=title,
        headline=headline(rows),
        names=tuple(names),
        unfinished=tuple(n for n, r in zip(names, records, strict=True) if r.result is None),
        size="; ".join(sorted({_size(row) for row in rows} - {""})),
        intervals=_intervals(rows),
        results=tables.table(rows) if rows else None,
        details=frame.across("In more detail", details(rows), [row.label for row in rows]),
        curves=training.table(records, names),
        levels=_levels(found, shown) if len(found) > 1 else None,
        changes=frame.across(
            "What changed in the weights",
            weights.measures([row.result.anatomy for row in rows]),
            [row.label for row in rows],
        ),
        figures=tuple(drawings),
        answers=tuple(a for group in groups for a in _answers(group, names, records)),
        samples=samples[: completions.RUNS_SHOWN],
        more_runs=len(every - answered) + max(0, len(samples) - completions.RUNS_SHOWN),
        proofs=tuple((r.label, r.result.change_proof) for r in rows if r.result.change_proof),
        settings=settings,
        settings_table=frame.across(
            "Settings that differ", list(settings.different.items()), names
        ),
        versions=versions,
        versions_table=frame.across(
            "Versions that differ", list(versions.different.items()), names
        ),
        repeat=tuple(_repeat(record) for record in records),
    )


def headline(rows: Sequence[Row]) -> str:
    """One sentence: what was trained, and from where to where held-out accuracy went."""
    done = [row for row in rows if row.result.base and row.result.trained]
    if not done:
        return ""
    first = done[0].result
    bases = {percent(_start(row)) for row in done}
    same = len({(row.result.task, row.result.model) for row in done}) == 1
    what = f"held-out accuracy on {first.task}" if same and first.task else "held-out accuracy"
    subject = f"Training {first.model}" if same and first.model else "Training"
    if len(done) > 4 and len(bases) == 1:
        done.sort(key=_reached)
        worst, best = done[0], done[-1]
        return (
            f"{subject} in {len(done)} runs took {what} from {bases.pop()}% to between"
            f" {percent(_reached(worst))}% ({worst.label}) and"
            f" {percent(_reached(best))}% ({best.label})."
        )
    clauses: list[str] = []
    for number, row in enumerate(done):
        start = "" if number and len(bases) == 1 else f"from {percent(_start(row))}% "
        trained = share(row.share) + (" of the parameters trained" if not number else "")
        clauses.append(f"{start}to {percent(_reached(row))}% with {row.label} ({trained})")
    joined = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
    return f"{subject} took {what} {joined}."


def details(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Further measures, name -> a text for each run; those that no run has are left out."""
    measures = {
        "Accuracy, lenient reading (%)": [tables.change(row, "lenient") for row in rows],
        "Answer in the asked format (%)": [tables.change(row, "format") for row in rows],
        "Cut at the length limit (%)": [tables.change(row, "truncated") for row in rows],
        "Generated tokens": [tables.count(row.result.generated_tokens) for row in rows],
        "Sampling (seconds per step)": [tables.decimal(row.sampling_seconds) for row in rows],
        "Training (seconds per step)": [tables.decimal(row.training_seconds) for row in rows],
        "Largest gap, sampler to trainer (nats)": [
            tables.NONE if row.result.agreement_max is None else f"{row.result.agreement_max:.2g}"
            for row in rows
        ],
    }
    missing = {tables.NONE, tables.NONE + tables.ARROW + tables.NONE}
    return [(name, texts) for name, texts in measures.items() if set(texts) - missing]


def pick(samples: Sequence[Sample]) -> tuple[tuple[int, tuple[Sample, ...]], ...]:
    """The first completions logged at the earliest and at the latest step, by step."""
    steps = sorted({sample.step for sample in samples})
    ends = dict.fromkeys(steps[:1] + steps[-1:])
    return tuple((s, tuple([x for x in samples if x.step == s][:SAMPLES_SHOWN])) for s in ends)


def about(sample: Sample) -> str:
    """The reward and its terms in a line."""
    known = [] if sample.reward is None else [f"reward {sample.reward:.2f}"]
    for term, score in sample.scores.items():
        shown = f"{score:.2f}" if isinstance(score, int | float) else str(score)
        known.append(f"{printable(str(term))} {printable(shown, 100)}")
    return " · ".join(known)


def compare(configs: Sequence[Mapping[str, Any]]) -> Settings:
    """What the runs' settings have in common and where they differ."""
    flat = [_flatten(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config)
    values = {name: tuple(config.get(name, tables.NONE) for config in flat) for name in names}
    return Settings(
        shared={name: texts[0] for name, texts in values.items() if len(set(texts)) == 1},
        different={name: texts for name, texts in values.items() if len(set(texts)) > 1},
    )


def _intervals(rows: Sequence[Row]) -> tuple[str, ...]:
    if not rows:
        return ()
    one_seed = len({row.colour for row in rows}) == len(rows) > 1
    return (INTERVALS, ONE_SEED if one_seed else f"{LUCK}.")


def _answers(group: Held, names: Sequence[str], records: Sequence[RunRecord]) -> list[Answers]:
    """The first problems, each with the first sample of the base and of the first runs."""
    kinds = colours(records)
    sides: list[tuple[str, int | None, Mapping[str, Written]]]
    sides = [("base", None, completions.first(group.base))]
    for number, rows in list(zip(group.runs, group.trained, strict=True))[: completions.RUNS_SHOWN]:
        sides.append((names[number], kinds[number], completions.first(rows)))
    made: list[Answers] = []
    for key, row in sides[-1][2].items():
        written = tuple((name, kind, rows[key]) for name, kind, rows in sides if key in rows)
        made.append(Answers(row.question, row.gold, written))
    return made


def _levels(found: Sequence[Level], names: Sequence[str]) -> Table:
    rows = [
        [level.name, Cell(str(level.problems)), *(percent(a) for a in level.accuracy)]
        for level in found
    ]
    heads = ["difficulty", "problems", "base (%)", *(f"{name} (%)" for name in names)]
    return frame.table("Held-out accuracy by difficulty", heads, rows)


def _maps(changes: maps.Runs) -> list[frame.Figure]:
    if not maps.drawable(changes):
        return []
    names = ", ".join(label for label, _ in changes[: maps.PANELS_SHOWN])
    return [
        frame.Figure(
            "changes",
            f"Size of the change in every layer and part of the weights: {names}",
            "Size of the change over the size of the weights (%), by layer and part. Darker is"
            " more (as the root), on one scale for all runs; an empty cell did not change.",
            lambda narrow: maps.change_map(changes, narrow),
        )
    ]


def _repeat(record: RunRecord) -> str:
    config = shlex.quote(str(record.folder / "config.toml"))
    out = shlex.quote(f"{record.folder}-again")
    return f"modicum train --config {config} --out {out}"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[printable(f"{prefix}{name}")] = printable(text, LETTERS_SHOWN)
    return flat


def _start(row: Row) -> float:
    return math.nan if row.result.base is None else row.result.base.accuracy


def _reached(row: Row) -> float:
    return math.nan if row.result.trained is None else row.result.trained.accuracy


def _size(row: Row) -> str:
    score = row.result.trained or row.result.base
    if score is None or score.num_problems is None:
        return ""
    many = score.samples_per_problem
    return f"{score.num_problems:,} problems" + ("" if many is None else f", {many} samples each")
