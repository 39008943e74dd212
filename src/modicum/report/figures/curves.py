"""Curves of training: what runs logged, against steps, tokens and time.

A line is a centred mean over a tenth of the steps. Of several seeds it is the mean over them
and the band goes from the lowest to the highest seed, as far as all of them went; with one
run, the raw values are faint behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from modicum.logged import METRICS, Metric, metric_of
from modicum.report.read import RunRecord, colours
from modicum.results import Column

Against = Literal["step", "tokens", "seconds"]
AXES: Mapping[Against, str] = {
    "step": "step",
    "tokens": "generated tokens",
    "seconds": "seconds of training",
}
POINTS = 120  # of a line, at most: the eye sees no more in a small panel
RAW_SHOWN = 8  # with more runs the raw values would hide the lines
ACCURACY = "reward/accuracy"
TRAINED = Metric(
    ACCURACY, "Accuracy on training samples", "0 to 1", "correct completions (%)", "accuracy", ""
)
NO_TERM = ("reward/mean", "reward/errors")


@dataclass(frozen=True)
class Line:
    """The mean over seeds with the lowest and the highest seed, or one run and its raw values.

    `number` is that of the update, whose `label` it has.
    """

    x: Column
    mean: Column
    low: Column | None = None
    high: Column | None = None
    raw: Column | None = None
    number: int = 0
    label: str = ""


def panels(records: Sequence[RunRecord]) -> list[Metric]:
    """The metrics that any run has values for: reward terms first, then those that are drawn."""
    names = dict.fromkeys(n for r in records for n in r.metrics if n.startswith("reward/"))
    terms = [n for n in names if n not in NO_TERM]
    found = [TRAINED if n == ACCURACY else metric_of(n) for n in terms]
    # Of a single term the weighted reward says nothing more.
    if len(terms) != 1 and "reward/mean" in names:
        found.insert(0, METRICS["reward/mean"])
    found += [m for m in METRICS.values() if m.shown and not m.key.startswith("reward/")]
    return [metric for metric in found if any(values(r, metric)[0].size for r in records)]


def constant(records: Sequence[RunRecord], metric: Metric) -> tuple[float, ...]:
    """The values (in the shown unit) of runs that each log one and the same in every step.

    Lowest first, each once; nothing when a run's changes.
    """
    seen = [column for record in records if (column := values(record, metric)[1]).size]
    if any(np.ptp(column) for column in seen):
        return ()
    return tuple(sorted({float(column[0]) for column in seen}))


def against(record: RunRecord, axis: Against) -> Column | None:
    """What an axis has for each step of a run, or None when that was not logged.

    Tokens and seconds are sums from the start: at the end of the step. Tokens are logged
    (`tokens/generated`) or, in older runs, the mean length times the completions of a step.
    """
    steps = record.metrics.get("step", np.empty(0))
    if axis == "step":
        return steps
    if axis == "seconds":
        return _total(record.metrics.get("time/step_seconds"))
    logged = record.metrics.get("tokens/generated")
    if logged is not None and np.isfinite(logged).all():
        return logged
    batch = record.config.get("batch")
    if not isinstance(batch, Mapping):
        return None
    prompts, group = batch.get("prompts_per_step"), batch.get("group_size")
    lengths = record.metrics.get("completions/length_mean")
    if lengths is None or not isinstance(prompts, int) or not isinstance(group, int):
        return None
    return _total(lengths * prompts * group)


def values(record: RunRecord, metric: Metric, axis: Against = "step") -> tuple[Column, Column]:
    """Where a run logged the metric, and its values in the shown unit."""
    pair = known(against(record, axis), record.metrics.get(metric.key))
    return (np.empty(0), np.empty(0)) if pair is None else (pair[0], metric.factor * pair[1])


def known(x: Column | None, y: Column | None) -> tuple[Column, Column] | None:
    """Two columns where both have numbers, or None where they nowhere do."""
    if x is None or y is None:
        return None
    seen = np.isfinite(x) & np.isfinite(y)
    return (x[seen], y[seen]) if seen.any() else None


def smooth(column: Column) -> Column:
    """A centred mean over about a tenth of the values (window of 1 for fewer than 20)."""
    half = len(column) // 20
    window = np.ones(2 * half + 1)
    weights = np.convolve(np.ones(len(column)), window, mode="same")
    return np.convolve(column, window, mode="same") / weights


def over_seeds(
    found: Sequence[tuple[Column, Column]], points: int, whole: bool = False
) -> tuple[Column, Column, Column, Column]:
    """x, mean, lowest, highest of curves (x, y) on one grid, as far as all of them went.

    With `whole` only at whole numbers. Of curves that have no x in common, the first.
    """
    start, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    if start > end:
        found = found[:1]
        start, end = found[0][0][0], found[0][0][-1]
    at: Column = np.linspace(start, end, points)
    if whole:
        at = np.unique(np.round(at)).astype(np.float64)
    each = np.stack([np.interp(at, x, smooth(y)) for x, y in found])
    return at, each.mean(0), each.min(0), each.max(0)


def lines(records: Sequence[RunRecord], metric: Metric, axis: Against = "step") -> list[Line]:
    """A line for each update that has values."""
    groups: dict[int, list[tuple[Column, Column]]] = {}
    names: dict[int, str] = {}
    for record, number in zip(records, colours(records), strict=True):
        names[number] = record.update
        if (pair := values(record, metric, axis))[0].size:
            groups.setdefault(number, []).append(pair)
    made = []
    for number, found in groups.items():
        if len(found) > 1:
            line = Line(*over_seeds(found, POINTS, axis == "step"))
        else:
            (x, y) = found[0]
            line = Line(x, smooth(y), raw=y if len(records) <= RAW_SHOWN else None)
        made.append(replace(line, number=number, label=names[number]))
    return made


def _total(column: Column | None) -> Column | None:
    return None if column is None or np.isnan(column).all() else np.nancumsum(column)
