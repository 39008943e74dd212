"""Learning curves of a study: a panel for each arm, the control behind it in grey.

A line is the mean over seeds of the runs' accuracy on their own training samples, each run
first smoothed by a centred mean over a tenth of its points; the band goes from the lowest
seed to the highest. Runs of different lengths are read at the same x by interpolation,
within what all of them have.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from modicum.report import document
from modicum.report.figures import panels
from modicum.report.figures.curves import ACCURACY, Line, known, over_seeds
from modicum.report.numbers import some
from modicum.report.study.families import CONTROL, family
from modicum.report.study.read import ArmCurves, Columns, StudyRecord
from modicum.report.style import INK, MUTED, PAPER, Axes, Figure, name, tip
from modicum.results import ArmResult

POINTS = 50  # of a drawn line
AGAINST = {"steps": ("step", "step"), "tokens": ("tokens", "generated tokens")} | {
    "seconds": ("seconds", "training time (s)")
}


def metric(study: StudyRecord) -> str:
    """What the learning curves show: accuracy, or the reward where that was not logged."""
    columns = [c for curves in study.curves.values() for c in curves.seeds.values()]
    return ACCURACY if any(ACCURACY in c for c in columns) else "reward/mean"


def line(seeds: Mapping[str, Columns], x: str, y: str, points: int = POINTS) -> Line | None:
    """Mean and range over the seeds that logged both columns, or None where none did."""
    pairs = [known(columns.get(x), columns.get(y)) for columns in seeds.values()]
    found = [pair for pair in pairs if pair is not None]
    if not found:
        return None
    return Line(*over_seeds(found, min(points, max(len(xs) for xs, _ in found))))


def arms(study: StudyRecord) -> list[ArmResult]:
    """The arms that have curves, the control first."""
    return [a for a in study.analysis.arms if a.slug in study.curves]


def figures(study: StudyRecord) -> list[document.Figure]:
    """A figure for each axis that was logged; what the budget counts comes first.

    There all arms end at the same place.
    """
    made = []
    y, unit = metric(study), study.analysis.budget.unit if study.analysis.budget else "steps"
    factor, what, words = (100, "%", "Accuracy") if y == ACCURACY else (1, "reward", "Reward")
    for against in sorted(AGAINST, key=lambda name: name != unit):
        column, title = AGAINST[against]
        lines = {a.name: line(study.curves[a.slug].seeds, column, y) for a in arms(study)}
        ends = [
            f"{name} from {factor * found.mean[0]:.3g} to {factor * found.mean[-1]:.3g}"
            for name, found in lines.items()
            if found is not None
        ]
        if not ends:
            continue
        made.append(
            document.Figure(
                f"learning-{against}",
                f"Learning curves against {title}, {what}: {some(ends)}.",
                f"{words} on training samples against {title}: mean over seeds, each smoothed over"
                " a tenth of its steps; the band goes from the lowest to the highest seed. Grey:"
                " the control. Dashed: the base on held-out problems. Diamonds: held-out accuracy,"
                " with its 95 % interval at the end.",
                partial(draw, study, against),
            )
        )
    return made


def draw(study: StudyRecord, against: str, narrow: bool) -> Figure:
    """The figure against `steps`, `tokens` or `seconds`."""
    column, title = AGAINST[against]
    shown, y = arms(study), metric(study)
    factor, unit = (100, "accuracy (%)") if y == ACCURACY else (1, "reward")
    lines = {arm.slug: line(study.curves[arm.slug].seeds, column, y) for arm in shown}
    control = lines.get(study.control.slug)
    figure, grid = panels.grid([arm.name for arm in shown], narrow, title, unit)
    right = max((found.x[-1] for found in lines.values() if found), default=1.0)
    highs = [found.high.max() for found in lines.values() if found and found.high is not None]
    lows = [found.low.min() for found in lines.values() if found and found.low is not None]
    top = 103 if y == ACCURACY else max(highs, default=1) * 1.05
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
            if found.low is not None and found.high is not None:
                band = (factor * found.low, factor * found.high)
                axes.fill_between(found.x, *band, color=kind.colour, alpha=0.22, linewidth=0)
            (curve,) = axes.plot(found.x, factor * found.mean, color=kind.colour, linewidth=1.5)
            name(curve, arm.name)
            if y == ACCURACY:
                _held_out(axes, study.curves[arm.slug], arm, found, column, kind.colour)
        if y == ACCURACY and study.analysis.base is not None:
            base = 100 * study.analysis.base.mean
            axes.axhline(base, color=MUTED, linewidth=0.8, dashes=(4, 3))
    return figure


def _held_out(
    axes: Axes, curves: ArmCurves, arm: ArmResult, found: Line, column: str, colour: str
) -> None:
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


def between(curves: ArmCurves, column: str) -> tuple[list[float], list[float]]:
    """x and mean held-out accuracy (%) at the steps that every seed evaluated before its last."""
    tables = [{pair[0]: pair[1] for pair in pairs[:-1]} for pairs in curves.evaluations.values()]
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
