"""Curves of training: what runs logged, against steps, tokens and time.

A line is a centred mean over a tenth of the steps. Where an update has several seeds, the
line is the mean over them and the band goes from the lowest to the highest seed, as far as
all of them went; with one run, the raw values are faint behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modicum.report.read import RunRecord, colours

Column = NDArray[np.float64]
Against = Literal["step", "tokens", "seconds"]
AXES: Mapping[Against, str] = {
    "step": "step",
    "tokens": "generated tokens",
    "seconds": "seconds of training",
}
POINTS = 120  # of a line, at most: the eye sees no more in a small panel
RAW_SHOWN = 8  # with more runs the raw values would hide the lines
ACCURACY = "reward/accuracy"


@dataclass(frozen=True)
class Panel:
    """One small multiple: a metric, its title, its unit and the factor to that unit."""

    metric: str
    title: str
    unit: str
    factor: float = 1.0


PANELS = (
    Panel("completions/length_mean", "Completion length", "tokens per completion"),
    Panel("completions/truncated", "Cut at the length limit", "completions (%)", 100),
    Panel("completions/distinct", "Different completions", "of a group (%)", 100),
    Panel("groups/no_signal", "Groups without a signal", "groups (%)", 100),
    Panel("policy/entropy", "Entropy of the policy", "nats per token"),
    Panel("policy/kl", "KL from the reference", "nats per token"),
    Panel("policy/clip_fraction", "Clip share", "tokens (%)", 100),
    Panel("policy/grad_norm", "Norm of the gradient", "before clipping"),
    Panel("policy/learning_rate", "Learning rate", "of the last update"),
    Panel("update/active_parameters", "Parameters in training", "count"),
    Panel("time/step_seconds", "Time per step", "seconds"),
)
NO_TERM = ("reward/mean", "reward/errors")


@dataclass(frozen=True)
class Line:
    """One update in one panel: smoothed values, and a band or the raw values behind."""

    number: int
    label: str
    x: Column
    y: Column
    low: Column | None = None
    high: Column | None = None
    raw: Column | None = None


def panels(records: Sequence[RunRecord]) -> list[Panel]:
    """The panels that any run has values for: reward terms first, then PANELS."""
    names = dict.fromkeys(n for r in records for n in r.metrics if n.startswith("reward/"))
    terms = [n for n in names if n not in NO_TERM]
    found = [_term(n) for n in terms]
    # Of a single term the weighted reward says nothing more.
    if len(terms) != 1 and "reward/mean" in names:
        found.insert(0, Panel("reward/mean", "Reward", "mean per completion"))
    return [p for p in (*found, *PANELS) if any(values(r, p)[0].size for r in records)]


def constant(records: Sequence[RunRecord], panel: Panel) -> tuple[float, ...]:
    """The values (in the panel's unit) of runs that each log one and the same in every step.

    Lowest first, each once; nothing when a run's changes.
    """
    seen = [column for record in records if (column := values(record, panel)[1]).size]
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


def values(record: RunRecord, panel: Panel, axis: Against = "step") -> tuple[Column, Column]:
    """Where a run logged the panel's metric, and its values in the panel's unit."""
    x = against(record, axis)
    column = record.metrics.get(panel.metric)
    if x is None or column is None:
        return np.empty(0), np.empty(0)
    seen = np.isfinite(column) & np.isfinite(x)
    return x[seen], panel.factor * column[seen]


def smooth(column: Column) -> Column:
    """A centred mean over about a tenth of the values (window of 1 for fewer than 20)."""
    half = len(column) // 20
    window = np.ones(2 * half + 1)
    weights = np.convolve(np.ones(len(column)), window, mode="same")
    return np.convolve(column, window, mode="same") / weights


def lines(records: Sequence[RunRecord], panel: Panel, axis: Against = "step") -> list[Line]:
    """A line for each update that has values."""
    groups: dict[int, list[RunRecord]] = {}
    for record, number in zip(records, colours(records), strict=True):
        if values(record, panel, axis)[0].size:
            groups.setdefault(number, []).append(record)
    raw = len(records) <= RAW_SHOWN
    return [_line(number, group, panel, axis, raw) for number, group in groups.items()]


def _term(metric: str) -> Panel:
    if metric == ACCURACY:
        return Panel(metric, "Accuracy on training samples", "correct completions (%)", 100)
    return Panel(metric, f"Reward term {metric.removeprefix('reward/')}", "mean per completion")


def _total(column: Column | None) -> Column | None:
    return None if column is None or np.isnan(column).all() else np.nancumsum(column)


def _line(number: int, group: Sequence[RunRecord], panel: Panel, axis: Against, raw: bool) -> Line:
    found = [values(record, panel, axis) for record in group]
    if len(group) == 1:
        (x, y) = found[0]
        return Line(number, group[0].update, x, smooth(y), raw=y if raw else None)
    # On one grid, as far as all seeds went.
    x: Column = np.linspace(max(x[0] for x, _ in found), min(x[-1] for x, _ in found), POINTS)
    if axis == "step":
        x = np.unique(np.round(x)).astype(np.float64)
    each = np.stack([np.interp(x, at, smooth(y)) for at, y in found])
    return Line(number, group[0].update, x, each.mean(0), each.min(0), each.max(0))
