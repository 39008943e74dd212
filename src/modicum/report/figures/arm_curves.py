"""Curves of a study: learning, what else the runs logged, tuning; the control behind in grey.

Learning and tuning have a panel for each arm, all else is a table: a row an arm, a column a metric."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from modicum.logged import METRICS, Metric
from modicum.report import document, style
from modicum.report.figures import curves
from modicum.report.figures.curves import ACCURACY, AXES, PROBE, TRAINED, Line
from modicum.report.read import Columns
from modicum.report.study.read import CONTROL, ArmCurves, StudyRecord, family, shown
from modicum.report.style import GRID, INK, MUTED, PAPER, STYLES, Axes, Figure, Look, blank, tip
from modicum.report.words import brief, rate, say
from modicum.results import Analysis, ArmResult

COLUMNS = 9  # side by side on a page
INCH = 30  # points of a curve that is an inch wide
Lines = Mapping[str, Line | None]  # by an arm's slug


def metric(study: StudyRecord) -> Metric:
    """What the curves show: accuracy, on the probe set if all arms have it, or the reward."""
    if _probed(study):
        return METRICS[PROBE]
    logged = any(ACCURACY in columns for columns in _columns(study))
    return TRAINED if logged else METRICS["reward/mean"]


def _probed(study: StudyRecord) -> bool:
    return bool(_columns(study)) and all(PROBE in columns for columns in _columns(study))


def _columns(study: StudyRecord) -> list[Columns]:
    return [columns for arm in study.curves.values() for columns in arm.seeds.values()]


def lines(study: StudyRecord, metric: Metric, axis: str = "step", **options: int) -> Lines:
    """The line of every arm that has curves, by its slug."""
    line, found = curves.line, study.curves.items()
    return {slug: line(arm.seeds.values(), metric, axis, **options) for slug, arm in found}


def arms(study: StudyRecord) -> list[ArmResult]:
    """The arms that have curves, the control first."""
    return [a for a in study.analysis.arms if a.slug in study.curves]


def figures(study: StudyRecord) -> list[document.Figure]:
    """A figure for each axis that was logged, what the budget counts first; before them one of the best."""
    made, budget, y = [], study.analysis.budget, metric(study)
    unit = budget.unit if budget else "steps"
    timed = any(arm.cost.seconds for arm in study.analysis.arms)
    axes = [axis for axis in AXES if axis != "seconds" or timed]
    for axis in sorted(axes, key=lambda axis: axis.rstrip("s") != unit.rstrip("s")):
        found = lines(study, y, axis)
        if ends := [f"{a.name} {end.ends()}" for a in arms(study) if (end := found[a.slug])]:
            name = f"learning-{axis.rstrip('s')}s"
            values = {"axis": AXES[axis], "metric": y, "ends": ends}
            draw = partial(_draw, study, y, axis, found)
            if not made and len(ends) > 1:
                best = partial(_together, study, y, axis, found)
                made.append(document.figure("together", best, "learning-together", **values))
            made.append(document.figure("arm_learning", draw, name, **values))
    return made


def _draw(study: StudyRecord, y: Metric, axis: str, found: Lines, narrow: bool) -> Figure:
    shown, known = arms(study), [line for line in found.values() if line]
    control = found.get(study.control.slug)
    accuracy = "accuracy (%)" if y.factor == 100 else "reward"
    figure, grid = style.grid([arm.name for arm in shown], narrow, AXES[axis], accuracy)
    top = 103 if y.factor == 100 else max((line.high.max() for line in known), default=1) * 1.05
    for axes, arm in zip(grid, shown, strict=True):
        axes.set_xlim(0, 1.04 * max((line.x[-1] for line in known), default=1.0))
        axes.set_ylim(min(0.0, *(line.low.min() for line in known), 0.0), top)
        style.numbers(axes, "x", 3)
        style.numbers(axes, "y", 4)
        kind = family(study.analysis, arm)
        if control is not None and kind is not CONTROL:
            axes.plot(control.x, control.mean, color=MUTED, linewidth=1.0, alpha=0.55)
        if (own := found[arm.slug]) is None:
            style.remark(axes, "not logged", 0.6)
        else:
            own.draw(axes, kind.colour, arm.name)
        if y.factor == 100 and (last := own or control) is not None:
            _held_out(axes, study.curves[arm.slug], arm, last.x[-1], axis, kind.colour)
        if y.factor == 100 and study.analysis.base is not None:
            axes.axhline(100 * study.analysis.base.mean, color=MUTED, linewidth=0.8, dashes=(4, 3))
    return figure


def _together(study: StudyRecord, y: Metric, axis: str, found: Lines, narrow: bool) -> Figure:
    """The lines in one plot, of each colour the second one dashed."""
    figure, looks = blank(style.across(narrow), 2.9 if narrow else 3.3, fitted=True), list[Look]()
    axes = figure.subplots()
    for arm in shown(study.analysis):
        if (own := found.get(arm.slug)) is None:
            continue
        kind = family(study.analysis, arm)
        dashes = STYLES[sum(look[1] == kind.colour for look in looks) % len(STYLES)]
        look = {"color": kind.colour, "marker": kind.marker, "linestyle": dashes}
        every = max(1, len(own.x) // 6)
        axes.plot(own.x, own.mean, markersize=4, markevery=every, gid=style.name(arm.name), **look)
        looks.append((arm.name, kind.colour, kind.marker, dashes))
    if (base := study.analysis.base) is not None and y.factor == 100:
        axes.axhline(100 * base.mean, color=MUTED, linewidth=0.8, dashes=(4, 3))
    axes.set(xlabel=AXES[axis], ylabel=y.shown)
    style.numbers(axes, "x", 5)
    style.legend(figure, looks)
    return figure


def _held_out(
    axes: Axes, curves: ArmCurves, arm: ArmResult, end: float, axis: str, colour: str
) -> None:
    """Held-out accuracy: where it was measured during training, and at the end with interval."""
    look: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 0.8, "clip_on": False}
    axes.plot(*between(curves, axis), "D", color=PAPER, markersize=2.8, zorder=4, **look)
    if (band := arm.accuracy) is not None:
        axes.vlines(end, 100 * band.low, 100 * band.high, color=INK, linewidth=1.0)
        text = f"{arm.name}: {100 * band.mean:.1f} % of held-out problems at the end"
        look |= {"color": colour, "markersize": 4, "zorder": 5, "gid": tip(text)}
        axes.plot(end, 100 * band.mean, "D", **look)


def between(curves: ArmCurves, axis: str) -> tuple[list[float], list[float]]:
    """x and mean held-out accuracy (%) at the steps that every seed evaluated before its last."""
    tables = [{pair[0]: pair[1] for pair in pairs[:-1]} for pairs in curves.evaluations.values()]
    common = set.intersection(*map(set, tables)) if tables else set()
    seeds = [of for of in curves.seeds.values() if axis in of and np.isfinite(of[axis]).all()]
    steps = sorted(common) if seeds else []
    xs = [fmean(np.interp(step + 1, of["step"], of[axis]) for of in seeds) for step in steps]
    return xs, [100 * fmean(table[step] for table in tables) for step in steps]


def gather(study: StudyRecord) -> tuple[dict[Metric, Lines], list[str], list[str]]:
    """The metrics that move, with a curve for each arm; words on those that never did; few arms' own."""
    found = curves.metrics(_columns(study), short=True)
    found = curves.untrained(found) if _probed(study) else found
    moving = {of: lines(study, of, points=INCH) for of, same in found.items() if not same}
    who = {m: [arm.name for arm in arms(study) if of[arm.slug]] for m, of in moving.items()}
    few = {m: names for m, names in who.items() if 2 * len(names) < len(moving[m])}
    told = [f"{m.words} ({', '.join(names)})" for m, names in few.items()]
    moving = {m: of for m, of in moving.items() if m not in few}
    return moving, [same for same in found.values() if same], told


def signals(study: StudyRecord) -> document.Figure | None:
    """The table of curves, where any metric moves."""
    (moving, still, few), control = gather(study), study.control
    if not moving:
        return None
    known = ((metric, found.get(control.slug)) for metric, found in moving.items())
    ends = [f"{metric.words} {line.ends()}" for metric, line in known if line]
    values = {"moving": moving, "ends": ends, "control": control.name, "still": still, "few": few}
    return document.figure("signals", partial(_draw_signals, study, moving), **values)


def _draw_signals(study: StudyRecord, moving: Mapping[Metric, Lines], narrow: bool) -> Figure:
    """One block of all columns for a page, blocks of three for a phone."""
    names, signals = [arm.name for arm in arms(study)], list(moving.items())
    across, row, head = style.across(narrow), 0.42 if narrow else 0.3, 0.42
    left = 0.05 if narrow else min(2.1, style.width_of(names) + 0.12)
    count = 3 if narrow else max(4, -(-len(signals) // -(-len(signals) // COLUMNS)))
    block = head + row * len(names) + 0.12
    figure = blank(across, block * -(-len(signals) // count) + 0.05)
    width = (across - left) / count
    for number, (metric, found) in enumerate(signals):
        line, column = divmod(number, count)
        place = (left + column * width, line * block + head, width * 0.92, row * len(names))
        axes = style.place(figure, *place)
        _column(axes, study, metric, found, narrow, width)
        look: dict[str, Any] = {"fontsize": 7} if narrow else {"ha": "right", "va": "center"}
        for y, name in enumerate(names if column == 0 else ()):
            text = style.shorten(name, 3.4 if narrow else left - 0.1, 7 if narrow else 8)
            at = (0, y + 0.22) if narrow else (-0.1 / (width * 0.92), y + 0.6)
            axes.text(*at, text, **look)
    return figure


def _column(
    axes: Axes, study: StudyRecord, metric: Metric, found: Lines, narrow: bool, width: float
) -> None:
    """One metric: every arm's curve in a row of its own, from 0 to 1 of the row's height."""
    shown, room = arms(study), 0.55 if narrow else 0.8
    known = [line for line in found.values() if line is not None]
    low, high = (end([end(line.mean) for line in known]) for end in (min, max))
    last = max(line.x[-1] for line in known)
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(shown), 0))
    for number, arm in enumerate(shown):
        bottom = number + 0.94
        axes.plot([0, 0.72], [bottom, bottom], color=GRID, linewidth=0.6)
        kind = family(study.analysis, arm)
        control, own = found.get(study.control.slug), found[arm.slug]
        behind = None if kind is CONTROL else control
        for line, colour, thick, alpha in ((behind, MUTED, 0.8, 0.5), (own, kind.colour, 1.3, 1.0)):
            if line is not None:
                y = bottom - room * ((line.mean - low) / ((high - low) or 1.0))
                axes.plot(0.72 * line.x / last, y, color=colour, linewidth=thick, alpha=alpha)
        if own is not None:
            look = {"fontsize": 6.5, "va": "center", "color": INK}
            axes.text(0.75, bottom - room / 2, brief(own.mean[-1]), **look)
    title = style.shorten(metric.short, width, 7.5)
    axes.text(0, -0.62 if narrow else -0.85, title, fontweight="bold", fontsize=7.5)
    scale = f"{brief(low)} to {brief(high)}" + (" %" if metric.factor == 100 else "")
    axes.text(0, -0.18 if narrow else -0.2, scale, fontsize=6.5, color=MUTED)


def tuned(analysis: Analysis) -> list[ArmResult]:
    """The arms whose rate was chosen among several, in the order of the study."""
    return [arm for arm in analysis.arms if len(arm.tries) > 1]


def tuning(analysis: Analysis) -> document.Figure | None:
    """The curves, where any try ended."""
    found = tuned(analysis)
    if not any(t.accuracy is not None for arm in found for t in arm.tries):
        return None
    edges = [arm.name for arm in found if arm.rate_at_edge]
    rates = [f"{a.name} {rate(a.learning_rate)}" for a in found if a.learning_rate is not None]
    edge = say("at_edge", edges=edges, most=max(len({t.rate for t in arm.tries}) for arm in found))
    return document.figure("tuning", partial(_draw_tuning, analysis), at_edge=edge, rates=rates)


def ticks(rates: Sequence[float]) -> list[float]:
    """The lowest and the highest rate, and powers of ten that are not too near to them."""
    low, high = math.log10(min(rates)), math.log10(max(rates))
    room = 0.3 * (high - low)
    powers = range(math.ceil(low + room), math.floor(high - room) + 1)
    return sorted({min(rates), max(rates), *(10.0**power for power in powers)})


def _draw_tuning(analysis: Analysis, narrow: bool) -> Figure:
    """The figure: the chosen rate is ringed, one at the edge says so, a cross failed."""
    shown = tuned(analysis)
    what = ("learning rate", "accuracy, tuning problems (%)")
    figure, grid = style.grid([arm.name for arm in shown], narrow, *what)
    rates = [tried.rate for arm in shown for tried in arm.tries if tried.rate > 0]
    seen = [100 * t.accuracy for arm in shown for t in arm.tries if t.accuracy is not None]
    low, high = min(seen, default=0.0), max(seen, default=100.0)
    room = 0.12 * (high - low) or 2.0
    for axes, arm in zip(grid, shown, strict=True):
        axes.set(xscale="log", xlim=(min(rates) / 1.6, max(rates) * 1.6))
        axes.xaxis.set_minor_formatter("")
        axes.set_xticks(ticks(rates), list(map(rate, ticks(rates))))
        # The outer labels stay within their panel: neighbours would touch.
        labels = axes.get_xticklabels()  # none where the numbers are another panel's
        for label, side in zip(labels[-1:] + labels[:1], ("right", "left"), strict=False):
            label.set(ha=side)
        axes.set_ylim(max(-3.0, low - room), min(103.0, high + room))
        style.numbers(axes, "y", 4)
        _panel(axes, arm, family(analysis, arm).colour)
    return figure


def _panel(axes: Axes, arm: ArmResult, colour: str) -> None:
    tried = [(t.rate, 100 * t.accuracy) for t in arm.tries if t.accuracy is not None]
    axes.plot(*zip(*tried, strict=True), color=colour, linewidth=1.2) if tried else None
    for at, accuracy in tried:
        ring: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 1.2, "markersize": 7}
        # Rates are written with a few digits.
        chosen = arm.learning_rate is not None and abs(at / arm.learning_rate - 1) < 1e-3
        look = ring if chosen else {"markersize": 3.5}
        look["gid"] = tip(f"{arm.name} at {at:.2g}: {accuracy:.1f} %")
        axes.plot(at, accuracy, "o", color=colour, zorder=3, **look)
    for failed in (t for t in arm.tries if t.accuracy is None):
        why = tip(f"{arm.name} at {failed.rate:.2g}: {failed.failed or 'failed'}")
        cross = {"color": INK, "markersize": 5, "clip_on": False, "gid": why}
        axes.plot(failed.rate, axes.get_ylim()[0], "x", **cross)
    if arm.rate_at_edge:
        low, high = axes.get_ylim()
        clear = all(accuracy > low + 0.3 * (high - low) for _, accuracy in tried)
        style.remark(axes, "best at the edge", 0.05 if clear else 0.86)
