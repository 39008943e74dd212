"""The forest plot: every arm's difference from the control, with the margin and the seeds.

Thick is the 90 % interval, thin the 95 % one. One panel has all arms; where that hides what lies around
the margin a second one shows it, and what goes beyond its axis ends in an arrow."""

import itertools
from functools import partial
from typing import Any

from modicum.report import document, style
from modicum.report.study.read import family, looks, ranked
from modicum.report.style import GRID, INK, MUTED, PAPER, Axes, Figure
from modicum.report.words import interval, points
from modicum.results import Analysis, ArmResult
from modicum.stats import Difference

# In margins: an arm whose interval comes nearer than NEAR decides how far the axis around the margin
# goes, up to FARTHEST (or 15 points, if that is more).
NEAR, FARTHEST = 2.0, 12.0
WHOLE = 0.6  # of all that there is: so much around the margin needs no panel of its own
# Points from the axes to the words beside it.
COLUMNS = {"diff.": 9, "90 % interval": 42, "verdict": 114}


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
    limit = max(FARTHEST * margin, 0.15)
    low = min([-2 * margin, *(d.low95 for d in close)])
    high = max([2 * margin, *(d.high95 for d in close)])
    room = 0.04 * (min(high, limit) - max(low, -limit))
    return max(low, -limit) - room, min(high, limit) + room


def panels(analysis: Analysis) -> list[tuple[float, float]]:
    """The limits of one panel with all arms, and of a second one where the first hides the margin."""
    near, margin = reach(analysis), analysis.margin
    found = [arm.difference for arm in analysis.arms if arm.difference]
    low = min([-2 * margin, *(d.low95 for d in found), *near])
    high = max([2 * margin, *(d.high95 for d in found), *near])
    room = 0.03 * (high - low)
    whole = (max(low, -1.0) - room, min(high, 1.0) + room)
    return [whole] if near[1] - near[0] > WHOLE * (high - low) else [whole, near]


def _forest(analysis: Analysis, narrow: bool) -> Figure:
    arms = ranked(analysis)
    # Placebos and arms without a difference stand apart.
    kinds = [(a.placebo, a.difference is None and a.name != analysis.control) for a in arms]
    steps = (1.0 if one == other else 1.5 for one, other in itertools.pairwise(kinds))
    places = list(itertools.accumulate(steps, initial=0.0))
    row = 0.5 if narrow else 0.3
    figure = style.blank(style.across(narrow), row * (places[-1] + 1) + 0.8, fitted=True)
    limits, margin = panels(analysis), 100 * analysis.margin
    grid = figure.subplots(1, len(limits), squeeze=False).ravel()
    style.legend(figure, looks(analysis))
    for axes, ends in zip(grid, limits, strict=True):
        axes.axvspan(-margin, margin, color=GRID, alpha=0.55, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.9)
        for side in (-margin, margin):
            axes.axvline(side, color=MUTED, linewidth=0.8, dashes=(3, 3))
        axes.set(xlim=[100 * end for end in ends], ylim=(places[-1] + 0.6, -0.5), yticks=[])
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        style.numbers(axes, "x", 7 if len(grid) == 1 else 4)
        for arm, y in zip(arms, places, strict=True):
            _arm(axes, analysis, arm, y + (0.2 if narrow else -0.05))
        if not narrow:
            axes.hlines(places, *axes.get_xlim(), color=GRID, linewidth=0.5, zorder=0)
    if len(grid) > 1:
        grid[1].set_title("around the margin", fontsize=8, fontweight="normal", color=MUTED)
    what = f"difference in {analysis.primary} from {analysis.control} (points)"
    figure.supxlabel(what, color=MUTED)
    for arm, y in zip(arms, places, strict=True):
        _words(grid[0], grid[-1], analysis, arm, y, narrow)
    for text, offset in () if narrow else COLUMNS.items():
        _beside(grid[-1], -0.6, offset, text, color=MUTED)
    return figure


def _arm(axes: Axes, analysis: Analysis, arm: ArmResult, y: float) -> None:
    kind = family(analysis, arm)
    colour, found, (low, high) = kind.colour, arm.difference, axes.get_xlim()
    if arm.name == analysis.control:
        tip = style.tip(f"{arm.name}: the control")
        axes.plot(0, y, kind.marker, color=colour, markersize=9, zorder=4, gid=tip)
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
    control = next(a for a in analysis.arms if a.name == analysis.control).by_seed
    seeds = [100 * (arm.by_seed[s] - control[s]) for s in arm.by_seed if s in control]
    dots = [gap for gap in seeds if low <= gap <= high] if len(seeds) > 1 else []
    look: dict[str, Any] = {"color": colour, "markersize": 3, "alpha": 0.6, "mew": 0, "zorder": 3}
    axes.plot(dots, [y + 0.26] * len(dots), "o", **look)
    if low <= 100 * found.mean <= high:
        look = {"markersize": 6, "markeredgecolor": PAPER, "markeredgewidth": 0.8}
        look |= {"zorder": 5, "gid": style.tip(f"{arm.name}: {words(found)}, {arm.verdict}")}
        axes.plot(100 * found.mean, y, kind.marker, color=colour, **look)


def words(found: Difference) -> str:
    """The difference and its 90 % interval in points."""
    return f"{points(found.mean)} {interval(found.low90, found.high90)}"


def _words(
    first: Axes, last: Axes, analysis: Analysis, arm: ArmResult, y: float, narrow: bool
) -> None:
    """Name, difference and verdict of an arm: beside the outer axes, on a phone above its mark."""
    found, verdict = arm.difference, style.shorten(arm.verdict, 1.2 if narrow else 1.3)
    if not narrow:
        weight = "bold" if arm.name == analysis.control else "normal"
        _beside(first, y, -6, style.shorten(arm.name, 2.35), fontweight=weight)
        left, middle, right = COLUMNS.values()
        _beside(last, y, right, verdict)
        if found is not None:
            _beside(last, y, left, points(found.mean))
            _beside(last, y, middle, interval(found.low90, found.high90), color=MUTED)
        return
    verdict = verdict if found is None else f"{points(found.mean)}  {verdict}"
    name = style.shorten(arm.name, 3.35 - style.width_of([verdict]))
    look: dict[str, Any] = {"va": "center", "zorder": 6}
    look["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    here, there = first.get_yaxis_transform(), last.get_yaxis_transform()
    # They lie over the panels, which need no room for them.
    for x, text, where, how in ((1, verdict, there, "right"), (0, name, here, "left")):
        weight = "bold" if x == 0 else "normal"
        said = last.text(x, y - 0.22, text, ha=how, fontweight=weight, transform=where, **look)
        said.set_in_layout(False)


def _beside(axes: Axes, y: float, points: float, text: str, **look: Any) -> None:
    """A text beside the axes, so many points from its right end, or from its left one."""
    place, side = ((1, y), "left") if points > 0 else ((0, y), "right")
    where = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(text, place, (points, 0), va="center", ha=side, **where, **look)
