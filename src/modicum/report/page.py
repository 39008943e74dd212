"""One self-contained HTML page about one or several runs.

Nothing is loaded from elsewhere, no script runs (the page's own policy forbids both), and
what a model wrote is escaped text.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from modicum.report import figures, tables, weights
from modicum.report.read import RunRecord, Sample, colours, labels, load
from modicum.report.style import SERIES
from modicum.report.tables import Row, percent, share
from modicum.types import UserError

SAMPLES_SHOWN = 2
LETTERS_SHOWN = 1500
# Everything of ASCII and Latin-1 control but tab and line end, and lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Settings:
    """Settings that all runs share (name -> value) and those that differ (name -> a value each)."""

    shared: Mapping[str, str]
    different: Mapping[str, tuple[str, ...]]


def write(folders: Sequence[str | Path], out: str | Path, title: str = "modicum report") -> Path:
    """Write the page about the runs in `folders` to the file `out` and return its path.

    Raises UserError for no folders, a run that cannot be read or a file that cannot be
    written.
    """
    if not folders:
        raise UserError("a report needs at least one run folder")
    text = render([load(folder) for folder in folders], title)
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    return out


def render(records: Sequence[RunRecord], title: str) -> str:
    """The page as text."""
    rows = tables.results(records)
    names = labels(records)
    # One run of each update: its seeds look alike.
    firsts = {row.colour: row for row in reversed(rows)}
    changes = [(row.label, row.result.anatomy) for _, row in sorted(firsts.items())]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = printable
    template = importlib.resources.files("modicum.report").joinpath("template.html")
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title=printable(title),
        headline=headline(rows),
        names=[printable(name) for name in names],
        unfinished=[n for n, record in zip(names, records, strict=True) if record.result is None],
        heads=tables.HEADS,
        rows=[(row.colour % len(SERIES), tables.cells(row)) for row in rows],
        details=details(rows),
        bars=[_inline(figures.bars(rows)), _inline(figures.bars(rows, 4.2))],
        curves=[_inline(figures.curves(records)), _inline(figures.curves(records, 1))],
        changes=weights.measures([row.result.anatomy for row in rows]),
        change_maps=[_inline(weights.change_map(changes, width)) for width in (9.6, 4.2)],
        samples=[
            (name, colour % len(SERIES), picked)
            for name, colour, record in zip(names, colours(records), records, strict=True)
            if (picked := pick(record.samples))
        ],
        proofs=[row for row in rows if row.result.change_proof],
        problems=sorted({_size(row) for row in rows} - {""}),
        one_seed=len({row.colour for row in rows}) == len(rows) > 1,
        settings=compare([record.config for record in records]),
        versions=compare([record.environment for record in records]),
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


def pick(samples: Sequence[Sample]) -> list[tuple[int, list[Sample]]]:
    """The first completions logged at the earliest and at the latest step, by step."""
    steps = sorted({sample.step for sample in samples})
    ends = dict.fromkeys(steps[:1] + steps[-1:])
    return [(s, [x for x in samples if x.step == s][:SAMPLES_SHOWN]) for s in ends]


def compare(configs: Sequence[Mapping[str, Any]]) -> Settings:
    """What the runs' settings have in common and where they differ."""
    flat = [_flatten(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config)
    values = {name: tuple(config.get(name, tables.NONE) for config in flat) for name in names}
    return Settings(
        shared={name: texts[0] for name, texts in values.items() if len(set(texts)) == 1},
        different={name: texts for name, texts in values.items() if len(set(texts)) > 1},
    )


def printable(text: str, limit: int | None = None) -> str:
    """`text` with control characters replaced; beyond `limit` letters it says how many more."""
    text = UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more letters)"


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
    times = (
        "" if score.samples_per_problem is None else f", {score.samples_per_problem} samples each"
    )
    return f"{score.num_problems:,} problems{times}"


def _inline(svg: str) -> Markup:
    # Inside HTML an <svg> needs no namespace. Our own figure, its texts escaped by matplotlib.
    return Markup(svg.replace(' xmlns="http://www.w3.org/2000/svg"', ""))
