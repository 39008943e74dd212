"""Curves of training: what runs logged, against steps, tokens and time.

A run is smoothed by a centred mean over a tenth of its steps. Of several seeds a line is the mean
over them, read at the same places by interpolation as far as all of them went; its band goes
from the lowest seed to the highest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from modicum.logged import METRICS, Metric, metric_of
from modicum.report.numbers import general, listed
from modicum.report.read import Columns
from modicum.report.style import Axes, name
from modicum.results import Column

AXES = {"step": "step", "tokens": "generated tokens", "seconds": "seconds of training"}
POINTS = 50  # of a line, at most: the eye sees no more in a small panel
ACCURACY = "reward/accuracy"
TRAINED = Metric(
    ACCURACY, "Accuracy on training samples", "0 to 1", "correct completions (%)", "accuracy", ""
)


@dataclass(frozen=True)
class Line:
    """The mean over seeds with the lowest and the highest, in the shown unit."""

    x: Column
    mean: Column
    low: Column
    high: Column

    def draw(
        self, axes: Axes, colour: str, label: str, style: str = "-", width: float = 1.5
    ) -> None:
        """The line, which the page can read by its label, and its band."""
        axes.fill_between(self.x, self.low, self.high, color=colour, alpha=0.18, linewidth=0)
        (drawn,) = axes.plot(self.x, self.mean, style, color=colour, linewidth=width)
        name(drawn, label)

    def ends(self) -> str:
        """Its first and its last value in words."""
        return f"from {general(self.mean[0])} to {general(self.mean[-1])}"


def line(seeds: Iterable[Columns], metric: Metric, axis: str = "step") -> Line | None:
    """Mean and range over the seeds that logged both columns, or None where none did.

    Of curves that have no x in common, the first.
    """
    found = [pair for columns in seeds if (pair := values(columns, metric, axis))[0].size]
    if not found:
        return None
    start, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    if start > end:
        found = found[:1]
        start, end = found[0][0][[0, -1]]
    most = max(int(((x >= start) & (x <= end)).sum()) for x, _ in found)
    at = np.linspace(start, end, min(POINTS, most))
    each = np.stack([np.interp(at, x, smooth(y)) for x, y in found])
    return Line(at, each.mean(0), each.min(0), each.max(0))


def values(columns: Columns, metric: Metric, axis: str = "step") -> tuple[Column, Column]:
    """Where a run logged the metric, and its values in the shown unit."""
    if axis not in columns or metric.key not in columns:
        return np.empty(0), np.empty(0)
    x, y = columns[axis], columns[metric.key]
    seen = np.isfinite(x) & np.isfinite(y)
    return x[seen], metric.factor * y[seen]


def smooth(column: Column) -> Column:
    """A centred mean over about a tenth of the values (window of 1 for fewer than 20)."""
    window = np.ones(2 * (len(column) // 20) + 1)
    weights = np.convolve(np.ones(len(column)), window, mode="same")
    return np.convolve(column, window, mode="same") / weights


def metrics(runs: Sequence[Columns], short: bool = False) -> dict[Metric, str]:
    """What was logged, reward terms first, each with words on it if it never moves, or none.

    `short` takes the metrics of narrow columns. There what differs between runs moves, too.
    """
    logged = dict.fromkeys(key for columns in runs for key in columns)
    terms = [key for key in logged if key.startswith("reward/") and key != "reward/errors"]
    terms.sort(key="reward/mean".__ne__)
    # Of a single term the weighted reward says nothing more.
    terms = terms[1:] if len(terms) == 2 and terms[0] == "reward/mean" else terms
    drawn = [m.key for m in METRICS.values() if (m.short if short else m.shown)]
    found: dict[Metric, str] = {}
    for key in (*terms, *(key for key in drawn if not key.startswith("reward/"))):
        metric = TRAINED if key == ACCURACY else metric_of(key)
        seen = [column for run in runs if (column := values(run, metric)[1]).size]
        known = sorted({float(column[0]) for column in seen})
        if any(np.ptp(column) for column in seen) or (short and len(known) > 1):
            found[metric] = ""
        elif known:
            found[metric] = f"{metric.words} ({listed([general(value) for value in known])})"
    return found
