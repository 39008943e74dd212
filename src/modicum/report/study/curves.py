"""Learning curves of a study: a panel for each arm, the control behind it in grey.

A line is the mean over seeds of the runs' accuracy on their own training samples, each run
first smoothed by a centred mean over a tenth of its points; the band goes from the lowest
seed to the highest. Runs of different lengths are read at the same x by interpolation,
within what all of them have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modicum.report.curves import smooth
from modicum.report.study import panels
from modicum.report.study.analysis import Arm
from modicum.report.study.families import CONTROL, family
from modicum.report.study.read import Columns, Curves, Study
from modicum.report.style import INK, MUTED, PAPER, name, tip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 50  # of a drawn line
AGAINST = {"steps": ("step", "step"), "tokens": ("tokens", "generated tokens")} | {
    "seconds": ("seconds", "training time (s)")
}
METRIC = "reward/accuracy"


@dataclass(frozen=True)
class Line:
    """The mean over seeds with the lowest and the highest seed, at the same x."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def metric(study: Study) -> str:
    """What the learning curves show: accuracy, or the reward where that was not logged."""
    columns = [c for curves in study.curves.values() for c in curves.seeds.values()]
    return METRIC if any(METRIC in c for c in columns) else "reward/mean"


def line(seeds: Mapping[str, Columns], x: str, y: str, points: int = POINTS) -> Line | None:
    """Mean and range over the seeds that logged both columns, or None where none did."""
    found = [pair for columns in seeds.values() if (pair := _pair(columns, x, y)) is not None]
    if not found:
        return None
    start, end = max(xs[0] for xs, _ in found), min(xs[-1] for xs, _ in found)
    # Runs that have nothing in common: the longest part that one of them has.
    if start > end:
        found = found[:1]
        start, end = found[0][0][0], found[0][0][-1]
    at = np.linspace(start, end, min(points, max(len(xs) for xs, _ in found)))
    values = np.array([np.interp(at, xs, smooth(ys)) for xs, ys in found])
    return Line(at, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _pair(
    columns: Columns, x: str, y: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if x not in columns or y not in columns:
        return None
    seen = np.isfinite(columns[x]) & np.isfinite(columns[y])
    return (columns[x][seen], columns[y][seen]) if seen.any() else None


def arms(study: Study) -> list[Arm]:
    """The arms that have curves, the control first."""
    return [a for a in study.analysis.arms if a.slug in study.curves]


def draw(study: Study, against: str, narrow: bool) -> Figure:
    """The figure against `steps`, `tokens` or `seconds`."""
    column, title = AGAINST[against]
    shown, y = arms(study), metric(study)
    factor, unit = (100, "accuracy (%)") if y == METRIC else (1, "reward")
    lines = {arm.slug: line(study.curves[arm.slug].seeds, column, y) for arm in shown}
    control = lines.get(study.control.slug)
    figure, grid = panels.grid([arm.name for arm in shown], narrow, title, unit)
    right = max((found.x[-1] for found in lines.values() if found), default=1.0)
    highs = [found.high.max() for found in lines.values() if found]
    lows = [found.low.min() for found in lines.values() if found]
    top = 103 if y == METRIC else max(highs, default=1) * 1.05
    bottom = min(0.0, *lows) if lows else 0.0
    for axes, arm in zip(grid, shown, strict=True):
        axes.set_xlim(0, 1.04 * right)
        axes.set_ylim(factor * bottom, top)
        panels.numbers(axes, "x", 3)
        panels.numbers(axes, "y", 4)
        kind = family(study.analysis, arm)
        if control is not None and kind is not CONTROL:
            axes.plot(control.x, factor * control.mean, color=MUTED, linewidth=1.0, alpha=0.55)
        found = lines[arm.slug]
        if found is None:
            style = {"transform": axes.transAxes, "ha": "right", "fontsize": 7, "color": MUTED}
            axes.text(0.98, 0.05, "not logged", **style)
        else:
            _curve(axes, found, factor, kind.colour, arm.name)
            if y == METRIC:
                _held_out(axes, study.curves[arm.slug], arm, found, column, kind.colour)
        if y == METRIC and study.analysis.base is not None:
            base = 100 * study.analysis.base.mean
            axes.axhline(base, color=MUTED, linewidth=0.8, dashes=(4, 3))
    return figure


def _curve(axes: Axes, found: Line, factor: float, colour: str, label: str) -> None:
    axes.fill_between(
        found.x, factor * found.low, factor * found.high, color=colour, alpha=0.22, linewidth=0
    )
    (drawn,) = axes.plot(found.x, factor * found.mean, color=colour, linewidth=1.5)
    name(drawn, label)


def _held_out(axes: Axes, curves: Curves, arm: Arm, found: Line, column: str, colour: str) -> None:
    """Held-out accuracy: where it was measured during training, and at the end with interval."""
    style: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 0.8, "clip_on": False}
    xs, ys = between(curves, column)
    if xs:
        axes.plot(xs, ys, "D", color=PAPER, markersize=2.8, zorder=4, **style)
    if arm.accuracy is not None:
        band = arm.accuracy
        axes.vlines(found.x[-1], 100 * band.low, 100 * band.high, color=INK, linewidth=1.0)
        (mark,) = axes.plot(
            found.x[-1], 100 * band.mean, "D", color=colour, markersize=4, zorder=5, **style
        )
        tip(mark, f"{arm.name}: {100 * band.mean:.1f} % of held-out problems at the end")


def between(curves: Curves, column: str) -> tuple[list[float], list[float]]:
    """x and mean held-out accuracy (%) at the steps that every seed evaluated before its last."""
    tables = [dict(pairs[:-1]) for pairs in curves.evaluations.values()]
    common = set.intersection(*map(set, tables)) if tables else set()
    xs, ys = [], []
    for step in sorted(common):
        places = [
            float(np.interp(step + 1, columns["step"], columns[column]))
            for columns in curves.seeds.values()
            if column in columns and np.isfinite(columns[column]).all()
        ]
        if places:
            xs.append(float(np.mean(places)))
            ys.append(100 * float(np.mean([table[step] for table in tables])))
    return xs, ys
