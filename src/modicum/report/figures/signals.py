"""What else the runs logged, as a table of small curves: a row an arm, a column a metric.

Every column has one scale, from the lowest to the highest value in it. A curve is the mean
over seeds (see `curves.line`); the number at its right is its last value, the grey curve
behind it is the control's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modicum.logged import METRICS, Metric, metric_of
from modicum.report import document
from modicum.report.figures import panels
from modicum.report.figures.arm_curves import arms, line
from modicum.report.figures.curves import Line
from modicum.report.numbers import brief, general, listed, some
from modicum.report.study.families import CONTROL, family
from modicum.report.study.read import StudyRecord
from modicum.report.style import BROAD, GRID, INK, MUTED, NARROW, Axes, Figure, blank
from modicum.results import ArmResult

POINTS = 30  # of a curve an inch wide
COLUMNS = 9  # side by side on a page


@dataclass(frozen=True)
class Signal:
    """A metric with a curve for each arm's slug."""

    metric: Metric
    lines: Mapping[str, Line | None]

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value of all arms, in the shown unit."""
        means = [found.mean for found in self.lines.values() if found is not None]
        values = self.metric.factor * np.concatenate(means)
        return float(values.min()), float(values.max())


def gather(study: StudyRecord) -> tuple[list[Signal], list[str]]:
    """The metrics that move, reward terms first, and words on those that never did."""
    columns = [c for curves in study.curves.values() for c in curves.seeds.values()]
    logged = dict.fromkeys(name for c in columns for name in c)
    terms = [name for name in logged if name.startswith("reward/")]
    # Of a single term the weighted reward says nothing more.
    drop = "reward/mean" if len(terms) == 2 else ""
    short = [metric.key for metric in METRICS.values() if metric.short]
    moving: list[Signal] = []
    still: list[str] = []
    for key in dict.fromkeys((*terms, *short)):
        if key not in logged or key == drop:
            continue
        signal = Signal(
            metric_of(key),
            {a.slug: line(study.curves[a.slug].seeds, "step", key, POINTS) for a in arms(study)},
        )
        low, high = signal.limits
        if low == high:
            still.append(f"{signal.metric.words} ({general(low)})")
        else:
            moving.append(signal)
    return moving, still


def figure(study: StudyRecord) -> document.Figure | None:
    """The table of curves, where any metric moves."""
    moving, still = gather(study)
    if not moving:
        return None
    names = listed([signal.metric.words for signal in moving])
    same = f" The same in every step of every run: {listed(still)}." if still else ""
    ends = []
    for signal in moving:
        found = signal.lines.get(study.control.slug)
        if found is not None:
            first, last = (general(signal.metric.factor * found.mean[end]) for end in (0, -1))
            ends.append(f"{signal.metric.words} from {first} to {last}")
    return document.Figure(
        "signals",
        f"Against the step, for each arm: {names}. {study.control.name}: {some(ends)}.",
        f"What else was logged, against the step: {names}. Means over seeds; a column has one"
        " scale, given below its name; the number is the last value; grey is the control."
        f"{same}",
        lambda narrow: draw(study, moving, narrow),
    )


def draw(study: StudyRecord, signals: Sequence[Signal], narrow: bool) -> Figure:
    """The figure: one block of all columns for a page, blocks of three for a phone."""
    shown = arms(study)
    across, row, head = (NARROW, 0.42, 0.42) if narrow else (BROAD, 0.3, 0.42)
    left = 0.05 if narrow else min(2.1, panels.width_of([a.name for a in shown]) + 0.12)
    count = 3 if narrow else max(4, -(-len(signals) // -(-len(signals) // COLUMNS)))
    blocks = [signals[i : i + count] for i in range(0, len(signals), count)]
    block = head + row * len(shown) + 0.12
    figure = blank(across, block * len(blocks) + 0.05)
    width = (across - left) / count
    for number, chosen in enumerate(blocks):
        for column, signal in enumerate(chosen):
            top = number * block + head
            place = (left + column * width, top, width * 0.92, row * len(shown))
            axes = panels.place(figure, *place)
            _column(axes, study, shown, signal, narrow, width)
            if column == 0:
                _names(axes, shown, narrow, left, width * 0.92)
    return figure


def _column(
    axes: Axes,
    study: StudyRecord,
    shown: Sequence[ArmResult],
    signal: Signal,
    narrow: bool,
    axes_width: float,
) -> None:
    """One metric: every arm's curve in a row of its own, from 0 to 1 of the row's height."""
    low, high = signal.limits
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(shown), 0)
    room = 0.55 if narrow else 0.8
    control = signal.lines.get(study.control.slug)
    ends = [found.x[-1] for found in signal.lines.values() if found is not None]
    for number, arm in enumerate(shown):
        bottom = number + 0.94

        def at(found: Line, bottom: float = bottom) -> tuple[np.ndarray, np.ndarray]:
            share = (signal.metric.factor * found.mean - low) / (high - low)
            return 0.72 * found.x / max(ends), bottom - room * share

        axes.plot([0, 0.72], [bottom, bottom], color=GRID, linewidth=0.6)
        kind = family(study.analysis, arm)
        if control is not None and kind is not CONTROL:
            axes.plot(*at(control), color=MUTED, linewidth=0.8, alpha=0.5)
        found = signal.lines[arm.slug]
        if found is None:
            continue
        axes.plot(*at(found), color=kind.colour, linewidth=1.3)
        last = brief(signal.metric.factor * found.mean[-1])
        axes.text(0.75, bottom - room / 2, last, fontsize=6.5, va="center", color=INK)
    title = panels.shorten(signal.metric.short, axes_width, 7.5)
    axes.text(0, -0.62 if narrow else -0.85, title, fontweight="bold", fontsize=7.5)
    scale = f"{brief(low)} to {brief(high)}" + (" %" if signal.metric.factor == 100 else "")
    axes.text(0, -0.18 if narrow else -0.2, scale, fontsize=6.5, color=MUTED)


def _names(axes: Axes, shown: Sequence[ArmResult], narrow: bool, left: float, width: float) -> None:
    for number, arm in enumerate(shown):
        if narrow:
            axes.text(0, number + 0.22, panels.shorten(arm.name, 3.4, 7), fontsize=7)
        else:
            style = {"ha": "right", "va": "center"}
            axes.text(-0.1 / width, number + 0.6, panels.shorten(arm.name, left - 0.1), **style)
