"""Accuracy of the base and of each run or arm: bars with intervals; by difficulty; and the forest plot.

That has every arm's difference from the control, with the margin: thick is the 90 % interval, thin
the 95 % one. What goes beyond the axis ends in an arrow."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from modicum.report import document, style
from modicum.report.study.read import CONTROL, family, present, ranked
from modicum.report.style import BROAD, GRID, INK, MUTED, NARROW, PAPER, SERIES, Axes, Figure
from modicum.report.tables import RunRow
from modicum.report.words import interval, percent, points
from modicum.results import Analysis, ArmResult, Evaluation
from modicum.stats import Difference

WHISKER: dict[str, Any] = {"color": INK, "elinewidth": 1.1, "capsize": 2.5, "capthick": 1.1}
LIGHTEST, DARKEST = 0.04, 0.5  # the ink in a cell stays readable, in dark mode too
MOST = 12  # levels that fit a page
Rows = Sequence[tuple[str, Mapping[str, float]]]  # name -> accuracy by level, where it is known
DIAMOND: dict[str, Any] = {"linestyle": "", "marker": "D", "markersize": 4.5}
DIAMOND |= {"markerfacecolor": PAPER, "markeredgecolor": INK, "markeredgewidth": 1.0}
# In margins: an arm whose interval comes nearer than NEAR, or whose mean lies nearer than
# SHOWN, decides how far the axis goes, up to FARTHEST (or 15 points, if that is more).
NEAR, SHOWN, FARTHEST = 2.0, 5.0, 12.0
# Points from the axes to the words beside it.
COLUMNS = {"diff.": 9, "90 % interval": 42, "verdict": 114}


def figure(rows: Sequence[RunRow]) -> document.Figure | None:
    """The bars, where any run was evaluated: of the bases that differ, then of the runs."""
    bases: dict[str, tuple[str, Evaluation]] = {}
    for row in rows:
        if (base := row.result.base) is not None:
            bases.setdefault(repr(base), (f"base of {row.label}", base))
    found = [("base" if len(bases) == 1 else name, MUTED, base) for name, base in bases.values()]
    found += [(r.label, style.series(r.colour)[0], s) for r in rows if (s := r.result.trained)]
    texts = ", ".join(f"{label} {percent(score.accuracy)} %" for label, _, score in found)
    return document.figure("accuracy", partial(_bars, found), texts=texts) if found else None


def _bars(entries: Sequence[tuple[str, str, Evaluation]], narrow: bool) -> Figure:
    """Label, colour, scores as a figure: the base dashed; on a phone names are above the bars."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = [style.wrapped(label, 3.6 if narrow else 2.4) for label, _, _ in entries]
    lines = max(name.count("\n") for name in names)
    tall = 0.36 + 0.13 * lines + (0.14 if narrow else 0)
    figure = style.blank(NARROW if narrow else BROAD, tall * len(entries) + 0.95, fitted=True)
    axes = figure.subplots()
    axes.grid(axis="y", visible=False)
    thick = 0.21 / tall
    for place, (label, colour, score) in enumerate(entries):
        mean, low, high = 100 * score.accuracy, 100 * score.low, 100 * score.high
        (bar,) = axes.barh(place, mean, height=thick, color=colour, alpha=0.85, linewidth=0)
        if ends := interval(score.low, score.high, percent):
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], **WHISKER)
        style.tip(bar, f"{label}: {mean:.1f} % {ends}".strip())
        if not math.isnan(score.greedy):
            (diamond,) = axes.plot(100 * score.greedy, place, clip_on=False, zorder=4, **DIAMOND)
            style.tip(diamond, f"{label}, greedy: {percent(score.greedy)} %")
        if colour == MUTED:
            axes.axvline(mean, color=INK, linewidth=0.9, dashes=(4, 3))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_yticks(range(len(entries)), [""] * len(entries) if narrow else names)
    for place, name in enumerate(names if narrow else ()):
        across = axes.get_yaxis_transform()  # across in shares of the width
        text = axes.text(0.005, place - thick / 2 - 0.04, name, va="bottom", transform=across)
        text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 0.6})
    axes.set_ylim(len(entries) - 1 + thick, -1 + thick if narrow else -thick)
    highs = [v for _, _, s in entries for v in (s.accuracy, s.high, s.greedy) if not math.isnan(v)]
    axes.set_xlim(0, min(100.0, max(5.0, 112 * max(highs))))
    axes.set_xlabel("held-out problems solved (%)")
    handles = [Patch(color=MUTED, linewidth=0), Line2D([], [], color=INK, linewidth=1.1)]
    handles.append(Line2D([], [], **DIAMOND))
    names = ["sampled", "95% interval", "greedy"]
    figure.legend(handles, names, loc="outside upper left", ncols=3)
    return figure


def levels(analysis: Analysis) -> dict[str, int]:
    """Level -> number of problems, easy ones first (as numbers where they are)."""
    found = {lv.level: lv.problems for arm in analysis.arms for lv in arm.difficulty}
    numbers = {level: float(level) for level in found if level.replace(".", "", 1).isdigit()}
    order = sorted(found, key=lambda level: (level not in numbers, numbers.get(level, 0.0), level))
    return {level: found[level] for level in order}


def rows(analysis: Analysis) -> Rows:
    """Name -> accuracy by level: the base, then the arms as the forest plot has them."""
    arms = [arm for arm in ranked(analysis) if arm.difficulty]
    base = {lv.level: lv.base for a in arms for lv in a.difficulty if lv.base is not None}
    scores = [{v.level: v.accuracy for v in a.difficulty if v.accuracy is not None} for a in arms]
    named = [("base", base)] if base else []
    return named + [(arm.name, found) for arm, found in zip(arms, scores, strict=True)]


def by_difficulty(
    known: Mapping[str, int], rows: Rows, what: str, bold: str = ""
) -> document.Figure | None:
    """The numbers, where there is more than one level; `what` says of which problems."""
    if len(known) < 2:
        return None
    first, *_, last = known
    both = [(name, found) for name, found in rows if first in found and last in found]
    values = [f"{n} {percent(of[first], 0)} and {percent(of[last], 0)}" for n, of in both]
    said = {"first": first, "last": last, "values": values, "what": what}
    return document.figure("difficulty", partial(cells, known, rows, bold), **said)


def difficulty_table(known: Mapping[str, int], rows: Rows) -> document.Table | None:
    """The same as a table."""
    lines = [[k, str(n), *(percent(of.get(k)) for _, of in rows)] for k, n in known.items()]
    heads = ("difficulty", "problems", *(f"{name} (%)" for name, _ in rows))
    name = "Held-out accuracy by difficulty"
    return document.table(name, heads, lines) if len(known) > 1 else None


def cells(known: Mapping[str, int], rows: Rows, bold: str, narrow: bool) -> Figure:
    """The figure; shades go from 0 to 100 % in every cell."""
    from matplotlib.patches import Rectangle

    columns = list(known.items())[:MOST]
    across, row, size = (NARROW, 0.27, 7) if narrow else (BROAD, 0.25, 8)
    left = min(1.45 if narrow else 2.5, style.width_of([name for name, _ in rows], size) + 0.1)
    left = max(left, style.width_of(["difficulty"], size - 1) + 0.1)
    width = min(0.8, (across - left - 0.05) / len(columns))
    figure = style.blank(across, row * len(rows) + 0.48)
    axes = style.place(figure, left, 0.42, width * len(columns), row * len(rows))
    axes.set_axis_off()
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    for x, (level, count) in enumerate(columns):
        axes.text(x + 0.5, -0.15, f"{count}", ha="center", fontsize=size - 1, color=MUTED)
        text = style.shorten(level, width, size)
        axes.text(x + 0.5, -0.85, text, ha="center", fontsize=size, fontweight="bold")
    for y, place in ((-0.85, "difficulty"), (-0.15, "problems")):
        axes.text(-0.1, y, place, ha="right", fontsize=size - 1, color=MUTED)
    for y, (name, found) in enumerate(rows):
        look = {"ha": "right", "va": "center", "color": MUTED if name == "base" else INK}
        look["fontweight"] = "bold" if name == bold else "normal"
        axes.text(-0.1, y + 0.5, style.shorten(name, left, size), fontsize=size, **look)
        for x, (level, _) in enumerate(columns):
            if level not in found:
                continue
            alpha = LIGHTEST + (DARKEST - LIGHTEST) * min(max(found[level], 0), 1)
            cell = Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=SERIES[0], alpha=alpha)
            cell.set_linewidth(0)
            axes.add_patch(cell)
            style.tip(cell, f"{name}, difficulty {level}: {100 * found[level]:.1f} %")
            text = percent(found[level], 0)
            axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=size)
    return figure


def differences(analysis: Analysis) -> document.Figure | None:
    """The plot, where any arm has a difference."""
    found = [(arm, arm.difference) for arm in ranked(analysis) if arm.difference is not None]
    if not found:
        return None
    values = [f"{arm.name} {words(gap)}, {arm.verdict}" for arm, gap in found]
    draw = partial(_forest, analysis)
    return document.figure("differences", draw, analysis=analysis, values=values)


def reach(analysis: Analysis) -> tuple[float, float]:
    """The ends of the axis, as fractions: around the arms whose interval comes near the margin."""
    margin, near = analysis.margin, NEAR * analysis.margin
    found = [arm.difference for arm in analysis.arms if arm.difference and not arm.placebo]
    close = [d for d in found if d.low90 < near and d.high90 > -near]
    means = [d.mean for d in found if abs(d.mean) < SHOWN * margin]
    limit = max(FARTHEST * margin, 0.15)
    low = min([-2 * margin, *(d.low95 for d in close), *means])
    high = max([2 * margin, *(d.high95 for d in close), *means])
    room = 0.04 * (min(high, limit) - max(low, -limit))
    return max(low, -limit) - room, min(high, limit) + room


def _forest(analysis: Analysis, narrow: bool) -> Figure:
    arms = ranked(analysis)
    # Placebos and arms without a difference stand apart.
    kinds = [(a.placebo, a.difference is None and a.name != analysis.control) for a in arms]
    steps = (1.0 if one == other else 1.5 for one, other in itertools.pairwise(kinds))
    places = list(itertools.accumulate(steps, initial=0.0))
    across, row = (NARROW, 0.46) if narrow else (BROAD, 0.28)
    figure = style.blank(across, row * (places[-1] + 1) + 0.8, fitted=True)
    axes = figure.subplots()
    style.legend(figure, [kind.look for kind in present(analysis)])
    margin = 100 * analysis.margin
    axes.axvspan(-margin, margin, color=GRID, alpha=0.55, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.9)
    for side in (-margin, margin):
        axes.axvline(side, color=MUTED, linewidth=0.8, dashes=(3, 3))
    axes.set_xlim(*(100 * end for end in reach(analysis)))
    axes.set_ylim(places[-1] + 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    style.numbers(axes, "x", 7)
    axes.set_xlabel(f"difference in {analysis.primary} from {analysis.control} (points)")
    for arm, y in zip(arms, places, strict=True):
        _arm(axes, analysis, arm, y + (0.22 if narrow else 0))
        _words(axes, analysis, arm, y, narrow)
    if not narrow:
        for text, offset in COLUMNS.items():
            _beside(axes, -0.6, offset, text, color=MUTED)
        axes.hlines(places, *axes.get_xlim(), color=GRID, linewidth=0.5, zorder=0)
    return figure


def _arm(axes: Axes, analysis: Analysis, arm: ArmResult, y: float) -> None:
    kind = family(analysis, arm)
    colour, found, (low, high) = kind.colour, arm.difference, axes.get_xlim()
    if arm.name == analysis.control:
        (mark,) = axes.plot(0, y, kind.marker, color=colour, markersize=9, zorder=4)
        style.tip(mark, f"{arm.name}: the control")
        return
    if found is None:
        return
    for ends, width in (((found.low95, found.high95), 1.1), ((found.low90, found.high90), 3.2)):
        a, b = (min(max(100 * end, low), high) for end in ends)
        if b > a:
            axes.plot([a, b], [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    arrows = {"<": 100 * found.low95 < low, ">": 100 * found.high95 > high}
    for edge, (arrow, beyond) in zip((low, high), arrows.items(), strict=True):
        if beyond:
            axes.plot(edge, y, arrow, color=colour, markersize=6, clip_on=False, zorder=4)
    if low <= 100 * found.mean <= high:
        look = {"markersize": 6, "markeredgecolor": PAPER, "markeredgewidth": 0.8}
        (mark,) = axes.plot(100 * found.mean, y, kind.marker, color=colour, zorder=5, **look)
        style.tip(mark, f"{arm.name}: {words(found)}, {arm.verdict}")


def words(found: Difference) -> str:
    """The difference and its 90 % interval in points."""
    return f"{points(found.mean)} {interval(found.low90, found.high90)}"


def _words(axes: Axes, analysis: Analysis, arm: ArmResult, y: float, narrow: bool) -> None:
    """Name, difference and verdict of an arm: beside the axes, on a phone above its mark."""
    found, verdict = arm.difference, style.shorten(arm.verdict, 1.2 if narrow else 1.3)
    if not narrow:
        weight = "bold" if family(analysis, arm) is CONTROL else "normal"
        _beside(axes, y, -6, style.shorten(arm.name, 2.35), fontweight=weight)
        first, second, third = COLUMNS.values()
        _beside(axes, y, third, verdict)
        if found is not None:
            _beside(axes, y, first, points(found.mean))
            _beside(axes, y, second, interval(found.low90, found.high90), color=MUTED)
        return
    verdict = verdict if found is None else f"{points(found.mean)}  {verdict}"
    name = style.shorten(arm.name, 3.35 - style.width_of([verdict]))
    look: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    look["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    axes.text(0, y - 0.22, name, fontweight="bold", **look)
    axes.text(1, y - 0.22, verdict, ha="right", **look)


def _beside(axes: Axes, y: float, points: float, text: str, **look: Any) -> None:
    """A text beside the axes, so many points from its right end, or from its left one."""
    place, side = ((1, y), "left") if points > 0 else ((0, y), "right")
    where = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(text, place, (points, 0), va="center", ha=side, **where, **look)
