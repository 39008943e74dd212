"""The forest plot: every arm's difference from the control, with the margin.

Thick is the 90 % interval (the tests at 5 % read its ends), thin the 95 % interval. The axis
covers what is near the margin; an interval that goes on beyond it ends in an arrow, and an
arm that lies beyond it altogether is an arrow with its number beside it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from modicum.report import document
from modicum.report.figures import panels
from modicum.report.numbers import interval, points
from modicum.report.study.families import CONTROL, family, present, ranked
from modicum.report.style import BROAD, GRID, INK, MUTED, NARROW, PAPER, Axes, Figure, blank, tip
from modicum.results import Analysis, ArmResult
from modicum.stats import Difference

# In margins: an arm whose interval comes nearer than NEAR, or whose mean lies nearer than
# SHOWN, decides how far the axis goes, up to FARTHEST (or 15 points, if that is more).
NEAR, SHOWN, FARTHEST = 2.0, 5.0, 12.0
COLUMNS = (0.12, 0.58, 1.58)  # inches from the axes to the words beside it
RIGHT = 2.85  # inches that they need


def figure(analysis: Analysis) -> document.Figure | None:
    """The plot, where any arm has a difference."""
    found = [(arm, arm.difference) for arm in ranked(analysis) if arm.difference is not None]
    if not found:
        return None
    values = [f"{arm.name} {words(gap)}, {arm.verdict}" for arm, gap in found]
    draw = partial(_draw, analysis)
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


def _draw(analysis: Analysis, narrow: bool) -> Figure:
    """A row for each arm, the best first, placebos and failed arms apart."""
    arms, families = ranked(analysis), present(analysis)
    across, row, left, right = (NARROW, 0.46, 0.12, 0.12) if narrow else (BROAD, 0.28, 2.5, RIGHT)
    left = min(left, panels.width_of([arm.name for arm in arms]) + 0.15)
    top = 0.19 * panels.legend_lines(families, 0.1, across) + (0.18 if narrow else 0.38)
    places = _places(analysis, arms)
    width, height = across - left - right, row * (places[-1] + 1)
    figure = blank(across, top + height + 0.42)
    axes = panels.place(figure, left, top, width, height)
    panels.legend(figure, families, 0.1, 0.06)
    _frame(axes, analysis, places)
    columns = () if narrow else tuple(1 + inches / width for inches in COLUMNS)
    for arm, y in zip(arms, places, strict=True):
        _arm(axes, analysis, arm, y + (0.22 if narrow else 0))
        _words(axes, analysis, arm, y, columns)
    for x, text in zip(columns, ("diff.", "90 % interval", "verdict"), strict=not narrow):
        axes.text(x, 1.0, text, transform=axes.transAxes, va="bottom", color=MUTED)
    if not narrow:
        axes.hlines(places, *axes.get_xlim(), color=GRID, linewidth=0.5, zorder=0)
    return figure


def _places(analysis: Analysis, arms: Sequence[ArmResult]) -> list[float]:
    """The row of each arm; placebos and arms without a difference stand apart."""
    places: list[float] = []
    y, before = 0.0, None
    for arm in arms:
        kind = (arm.placebo, arm.difference is None and arm.name != analysis.control)
        y += 0 if before is None else 1 if kind == before else 1.5
        before = kind
        places.append(y)
    return places


def _frame(axes: Axes, analysis: Analysis, places: Sequence[float]) -> None:
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
    panels.numbers(axes, "x", 7)
    axes.set_xlabel(f"difference in {analysis.primary} from {analysis.control} (points)")


def _arm(axes: Axes, analysis: Analysis, arm: ArmResult, y: float) -> None:
    """One arm's mark and intervals, cut with arrows at the ends of the axis."""
    kind = family(analysis, arm)
    if arm.name == analysis.control:
        (mark,) = axes.plot(0, y, kind.marker, color=kind.colour, markersize=9, zorder=4)
        tip(mark, f"{arm.name}: the control")
        return
    found = arm.difference
    if found is None:
        return
    low, high = axes.get_xlim()
    colour = kind.colour
    for ends, width in (((found.low95, found.high95), 1.1), ((found.low90, found.high90), 3.2)):
        a, b = (min(max(100 * end, low), high) for end in ends)
        if b > a:
            axes.plot([a, b], [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    for beyond, edge, arrow in (
        (100 * found.low95 < low, low, "<"),
        (100 * found.high95 > high, high, ">"),
    ):
        if beyond:
            axes.plot(edge, y, arrow, color=colour, markersize=6, clip_on=False, zorder=4)
    if low <= 100 * found.mean <= high:
        style = {"markersize": 6, "markeredgecolor": PAPER, "markeredgewidth": 0.8}
        (mark,) = axes.plot(100 * found.mean, y, kind.marker, color=colour, zorder=5, **style)
        tip(mark, f"{arm.name}: {words(found)}, {arm.verdict}")


def words(found: Difference) -> str:
    """The difference and its 90 % interval in points."""
    return f"{points(found.mean)} {interval(found.low90, found.high90)}"


def _words(
    axes: Axes, analysis: Analysis, arm: ArmResult, y: float, columns: Sequence[float]
) -> None:
    """Name, difference and verdict: beside the axes at those columns, or above without any."""
    style: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    found = arm.difference
    if columns:
        first, second, third = columns
        weight = "bold" if family(analysis, arm) is CONTROL else "normal"
        axes.text(-0.02, y, panels.shorten(arm.name, 2.35), ha="right", fontweight=weight, **style)
        axes.text(third, y, panels.shorten(arm.verdict, RIGHT - COLUMNS[2]), **style)
        if found is not None:
            axes.text(first, y, points(found.mean), **style)
            axes.text(second, y, interval(found.low90, found.high90), color=MUTED, **style)
        return
    verdict = panels.shorten(arm.verdict, 1.2)
    verdict = verdict if found is None else f"{points(found.mean)}  {verdict}"
    name = panels.shorten(arm.name, 3.35 - panels.width_of([verdict]))
    style["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    axes.text(0, y - 0.22, name, fontweight="bold", **style)
    axes.text(1, y - 0.22, verdict, ha="right", **style)
