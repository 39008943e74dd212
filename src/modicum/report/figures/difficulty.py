"""Accuracy by the difficulty of the problems: shaded numbers, a row a run or an arm."""

from collections.abc import Mapping, Sequence

from modicum.report import document, style
from modicum.report.study.families import ranked
from modicum.report.style import BROAD, INK, MUTED, NARROW, SERIES, Figure, blank, tip
from modicum.report.words import percent
from modicum.results import Analysis

LIGHTEST, DARKEST = 0.04, 0.5  # the ink in a cell stays readable, in dark mode too
MOST = 12  # levels that fit a page
Rows = Sequence[tuple[str, Mapping[str, float]]]  # name -> accuracy by level, where it is known


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
    found = [
        (a.name, {lv.level: lv.accuracy for lv in a.difficulty if lv.accuracy is not None})
        for a in arms
    ]
    return [("base", base), *found] if base else found


def figure(
    known: Mapping[str, int], rows: Rows, what: str, bold: str = ""
) -> document.Figure | None:
    """The numbers, where there is more than one level; `what` says of which problems."""
    if len(known) < 2:
        return None
    first, *_, last = known
    values = [
        f"{name} {percent(found[first], 0)} and {percent(found[last], 0)}"
        for name, found in rows
        if first in found and last in found
    ]
    return document.figure(
        "difficulty",
        lambda narrow: draw(known, rows, bold, narrow),
        **{"first": first, "last": last, "values": values, "what": what},
    )


def table(known: Mapping[str, int], rows: Rows) -> document.Table | None:
    """The same as a table."""
    lines = [
        [level, str(count), *(percent(found.get(level)) for _, found in rows)]
        for level, count in known.items()
    ]
    heads = ("difficulty", "problems", *(f"{name} (%)" for name, _ in rows))
    name = "Held-out accuracy by difficulty"
    return document.table(name, heads, lines) if len(known) > 1 else None


def draw(known: Mapping[str, int], rows: Rows, bold: str, narrow: bool) -> Figure:
    """The figure; shades go from 0 to 100 % in every cell."""
    from matplotlib.patches import Rectangle

    columns = list(known.items())[:MOST]
    across, row, size = (NARROW, 0.27, 7) if narrow else (BROAD, 0.25, 8)
    left = min(1.45 if narrow else 2.5, style.width_of([name for name, _ in rows], size) + 0.1)
    left = max(left, style.width_of(["difficulty"], size - 1) + 0.1)
    width = min(0.8, (across - left - 0.05) / len(columns))
    figure = blank(across, row * len(rows) + 0.48)
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
            tip(cell, f"{name}, difficulty {level}: {100 * found[level]:.1f} %")
            text = percent(found[level], 0)
            axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=size)
    return figure
