"""What else the runs logged, as a table of small curves: a row an arm, a column a metric.

Every column has one scale, from the lowest to the highest value in it. A curve is the mean
over seeds (see `curves.line`); the number at its right is its last value, the grey curve
behind it is the control's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modicum.report import frame, tables
from modicum.report.curves import PANELS
from modicum.report.study import panels
from modicum.report.study.analysis import Arm
from modicum.report.study.curves import Line, arms, line
from modicum.report.study.families import CONTROL, family
from modicum.report.study.read import Study
from modicum.report.style import BROAD, GRID, INK, MUTED, NARROW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 30  # of a curve an inch wide
TITLES = {
    "reward/mean": ("reward", 1.0),
    "completions/length_mean": ("length", 1.0),
    "completions/truncated": ("cut", 100.0),
    "completions/distinct": ("distinct", 100.0),
    "groups/no_signal": ("no signal", 100.0),
    "policy/entropy": ("entropy", 1.0),
    "policy/kl": ("KL", 1.0),
    "policy/clip_fraction": ("clipped", 100.0),
    "policy/grad_norm": ("gradient", 1.0),
}
WORDS = {panel.metric: panel.title for panel in PANELS} | {"reward/mean": "reward"}
COLUMNS = 9  # side by side on a page


@dataclass(frozen=True)
class Signal:
    """A metric: its short title, the factor to its unit, and a curve for each arm's slug."""

    metric: str
    title: str
    factor: float
    lines: Mapping[str, Line | None]

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value of all arms, in the column's unit."""
        means = [found.mean for found in self.lines.values() if found is not None]
        values = self.factor * np.concatenate(means)
        return float(values.min()), float(values.max())

    @property
    def words(self) -> str:
        """The metric's name in words."""
        title = WORDS.get(self.metric, f"reward term {self.metric.removeprefix('reward/')}")
        return title if title[1].isupper() else title[0].lower() + title[1:]


def gather(study: Study) -> tuple[list[Signal], list[str]]:
    """The metrics that move, reward terms first, and words on those that never did."""
    columns = [c for curves in study.curves.values() for c in curves.seeds.values()]
    terms = dict.fromkeys(n for c in columns for n in c if n.startswith("reward/"))
    single = len(terms) == 2 and "reward/mean" in terms
    names = [n for n in (*terms, *TITLES) if not (single and n == "reward/mean")]
    moving: list[Signal] = []
    still: list[str] = []
    for metric in dict.fromkeys(names):
        if not any(metric in c for c in columns):
            continue
        title, factor = TITLES.get(metric, (metric.removeprefix("reward/"), 1.0))
        lines = {
            arm.slug: line(study.curves[arm.slug].seeds, "step", metric, POINTS)
            for arm in arms(study)
        }
        signal = Signal(metric, title, factor, lines)
        low, high = signal.limits
        if low == high:
            still.append(f"{signal.words} ({frame.number(low)})")
        else:
            moving.append(signal)
    return moving, still


def brief(value: float) -> str:
    """A value in a few letters: 20.8, 0.89, 1.9e−3, 12k."""
    if abs(value) >= 1000:
        return tables.short(value)
    if abs(value) >= 0.01 or value == 0:
        return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}".replace("-", "−")


def draw(study: Study, signals: Sequence[Signal], narrow: bool) -> Figure:
    """The figure: one block of all columns for a page, blocks of three for a phone."""
    from matplotlib.figure import Figure

    shown = arms(study)
    across, row, head = (NARROW, 0.42, 0.42) if narrow else (BROAD, 0.3, 0.42)
    left = 0.05 if narrow else min(2.1, panels.width_of([a.name for a in shown]) + 0.12)
    count = 3 if narrow else max(4, -(-len(signals) // -(-len(signals) // COLUMNS)))
    blocks = [signals[i : i + count] for i in range(0, len(signals), count)]
    block = head + row * len(shown) + 0.12
    figure = Figure(figsize=(across, block * len(blocks) + 0.05))
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
    axes: Axes, study: Study, shown: Sequence[Arm], signal: Signal, narrow: bool, axes_width: float
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
            share = (signal.factor * found.mean - low) / (high - low)
            return 0.72 * found.x / max(ends), bottom - room * share

        axes.plot([0, 0.72], [bottom, bottom], color=GRID, linewidth=0.6)
        kind = family(study.analysis, arm)
        if control is not None and kind is not CONTROL:
            axes.plot(*at(control), color=MUTED, linewidth=0.8, alpha=0.5)
        found = signal.lines[arm.slug]
        if found is None:
            continue
        axes.plot(*at(found), color=kind.colour, linewidth=1.3)
        last = brief(signal.factor * found.mean[-1])
        axes.text(0.75, bottom - room / 2, last, fontsize=6.5, va="center", color=INK)
    title = panels.shorten(signal.title, axes_width, 7.5)
    axes.text(0, -0.62 if narrow else -0.85, title, fontweight="bold", fontsize=7.5)
    scale = f"{brief(low)} to {brief(high)}" + (" %" if signal.factor == 100 else "")
    axes.text(0, -0.18 if narrow else -0.2, scale, fontsize=6.5, color=MUTED)


def _names(axes: Axes, shown: Sequence[Arm], narrow: bool, left: float, width: float) -> None:
    for number, arm in enumerate(shown):
        if narrow:
            axes.text(0, number + 0.22, panels.shorten(arm.name, 3.4, 7), fontsize=7)
        else:
            style = {"ha": "right", "va": "center"}
            axes.text(-0.1 / width, number + 0.6, panels.shorten(arm.name, left - 0.1), **style)
