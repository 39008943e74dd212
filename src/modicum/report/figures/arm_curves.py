"""Learning curves of a study: a panel for each arm, the control behind it in grey."""

from functools import partial
from typing import Any

import numpy as np

from modicum.logged import METRICS, Metric
from modicum.report import document
from modicum.report.figures import panels
from modicum.report.figures.curves import ACCURACY, AXES, TRAINED, Line, line
from modicum.report.study.families import CONTROL, family
from modicum.report.study.read import ArmCurves, StudyRecord
from modicum.report.style import INK, MUTED, PAPER, Axes, Figure, tip
from modicum.results import ArmResult


def metric(study: StudyRecord) -> Metric:
    """What the learning curves show: accuracy, or the reward where that was not logged."""
    columns = [c for curves in study.curves.values() for c in curves.seeds.values()]
    return TRAINED if any(ACCURACY in c for c in columns) else METRICS["reward/mean"]


def lines(study: StudyRecord, metric: Metric, axis: str = "step") -> dict[str, Line | None]:
    """The line of every arm that has curves, by its slug."""
    return {s: line(arm.seeds.values(), metric, axis) for s, arm in study.curves.items()}


def arms(study: StudyRecord) -> list[ArmResult]:
    """The arms that have curves, the control first."""
    return [a for a in study.analysis.arms if a.slug in study.curves]


def figures(study: StudyRecord) -> list[document.Figure]:
    """A figure for each axis that was logged; what the budget counts comes first.

    There all arms end at the same place.
    """
    made, budget, shown = [], study.analysis.budget, metric(study)
    unit = budget.unit if budget else "steps"
    for axis in sorted(AXES, key=lambda axis: axis.rstrip("s") != unit.rstrip("s")):
        found = lines(study, shown, axis)
        ends = [f"{a.name} {end.ends()}" for a in arms(study) if (end := found[a.slug])]
        if ends:
            name = f"learning-{axis.rstrip('s')}s"
            values = {"axis": AXES[axis], "metric": shown, "ends": ends}
            draw = partial(_draw, study, axis)
            made.append(document.figure("arm_learning", draw, name, **values))
    return made


def _draw(study: StudyRecord, axis: str, narrow: bool) -> Figure:
    shown, y = arms(study), metric(study)
    found = lines(study, y, axis)
    known = [line for line in found.values() if line]
    control = found.get(study.control.slug)
    accuracy = "accuracy (%)" if y is TRAINED else "reward"
    figure, grid = panels.grid([arm.name for arm in shown], narrow, AXES[axis], accuracy)
    top = 103 if y is TRAINED else max((line.high.max() for line in known), default=1) * 1.05
    for axes, arm in zip(grid, shown, strict=True):
        axes.set_xlim(0, 1.04 * max((line.x[-1] for line in known), default=1.0))
        axes.set_ylim(min(0.0, *(line.low.min() for line in known), 0.0), top)
        panels.numbers(axes, "x", 3)
        panels.numbers(axes, "y", 4)
        kind = family(study.analysis, arm)
        if control is not None and kind is not CONTROL:
            axes.plot(control.x, control.mean, color=MUTED, linewidth=1.0, alpha=0.55)
        if (own := found[arm.slug]) is None:
            panels.remark(axes, "not logged")
        else:
            own.draw(axes, kind.colour, arm.name)
            if y is TRAINED:
                _held_out(axes, study.curves[arm.slug], arm, own.x[-1], axis, kind.colour)
        if y is TRAINED and study.analysis.base is not None:
            base = 100 * study.analysis.base.mean
            axes.axhline(base, color=MUTED, linewidth=0.8, dashes=(4, 3))
    return figure


def _held_out(
    axes: Axes, curves: ArmCurves, arm: ArmResult, end: float, axis: str, colour: str
) -> None:
    """Held-out accuracy: where it was measured during training, and at the end with interval."""
    style: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 0.8, "clip_on": False}
    axes.plot(*between(curves, axis), "D", color=PAPER, markersize=2.8, zorder=4, **style)
    if (band := arm.accuracy) is not None:
        axes.vlines(end, 100 * band.low, 100 * band.high, color=INK, linewidth=1.0)
        style |= {"color": colour, "markersize": 4, "zorder": 5}
        (mark,) = axes.plot(end, 100 * band.mean, "D", **style)
        tip(mark, f"{arm.name}: {100 * band.mean:.1f} % of held-out problems at the end")


def between(curves: ArmCurves, axis: str) -> tuple[list[float], list[float]]:
    """x and mean held-out accuracy (%) at the steps that every seed evaluated before its last."""
    tables = [{pair[0]: pair[1] for pair in pairs[:-1]} for pairs in curves.evaluations.values()]
    common = set.intersection(*map(set, tables)) if tables else set()
    xs, ys = [], []
    for step in sorted(common):
        places = [
            float(np.interp(step + 1, columns["step"], columns[axis]))
            for columns in curves.seeds.values()
            if axis in columns and np.isfinite(columns[axis]).all()
        ]
        if places:
            xs.append(float(np.mean(places)))
            ys.append(100 * float(np.mean([table[step] for table in tables])))
    return xs, ys
