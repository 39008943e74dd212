"""Accuracy by the difficulty of the problems: a table of shaded numbers, a row an arm."""

from modicum.report import document
from modicum.report.figures import panels
from modicum.report.numbers import some
from modicum.report.study.families import CONTROL, family, ranked
from modicum.report.style import BROAD, INK, MUTED, NARROW, SERIES, Figure, blank, tip
from modicum.results import Analysis

LIGHTEST, DARKEST = 0.04, 0.5  # the ink in a cell stays readable, in dark mode too
MOST = 12  # levels that fit a page


def levels(analysis: Analysis) -> dict[str, int]:
    """Level -> number of problems, easy ones first (as numbers where they are)."""
    found = {lv.level: lv.problems for arm in analysis.arms for lv in arm.difficulty}

    def place(level: str) -> tuple[bool, float, str]:
        try:
            return False, float(level), level
        except ValueError:
            return True, 0.0, level

    return {level: found[level] for level in sorted(found, key=place)}


def rows(analysis: Analysis) -> list[tuple[str, dict[str, float]]]:
    """Name -> accuracy by level: the base, then the arms as the forest plot has them."""
    arms = [arm for arm in ranked(analysis) if arm.difficulty]
    base = {lv.level: lv.base for a in arms for lv in a.difficulty if lv.base is not None}
    found = [
        (a.name, {lv.level: lv.accuracy for lv in a.difficulty if lv.accuracy is not None})
        for a in arms
    ]
    return [("base", base), *found] if base else found


def figure(analysis: Analysis) -> document.Figure | None:
    """The table, where there is more than one level."""
    known = list(levels(analysis))
    if len(known) < 2:
        return None
    first, last = known[0], known[-1]
    values = [
        f"{name} {100 * found[first]:.0f} and {100 * found[last]:.0f}"
        for name, found in rows(analysis)
        if first in found and last in found
    ]
    return document.Figure(
        "difficulty",
        f"Accuracy (%) by difficulty; on the problems of {first} and of {last}: {some(values)}.",
        f"{analysis.primary.capitalize()} (%) by the difficulty of the {analysis.split}"
        " problems, mean over seeds. Darker is more.",
        lambda narrow: draw(analysis, narrow),
    )


def draw(analysis: Analysis, narrow: bool) -> Figure:
    """The figure; shades go from 0 to 100 % in every cell."""
    from matplotlib.patches import Rectangle

    columns, lines = list(levels(analysis).items())[:MOST], rows(analysis)
    across, row = (NARROW, 0.27) if narrow else (BROAD, 0.25)
    size = 7 if narrow else 8
    names = panels.width_of([name for name, _ in lines], size) + 0.1
    left = min(1.45 if narrow else 2.5, names)
    width = min(0.8, (across - left - 0.05) / len(columns))
    down = row * len(lines) + 0.48
    figure = blank(across, down)
    axes = panels.place(figure, left, 0.42, width * len(columns), row * len(lines))
    axes.set_axis_off()
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(lines), 0)
    control = next(a.name for a in analysis.arms if family(analysis, a) is CONTROL)
    for x, (level, count) in enumerate(columns):
        axes.text(x + 0.5, -0.15, f"{count}", ha="center", fontsize=size - 1, color=MUTED)
        text = panels.shorten(level, width, size)
        axes.text(x + 0.5, -0.85, text, ha="center", fontsize=size, fontweight="bold")
    for y, place in ((-0.85, "difficulty"), (-0.15, "problems")):
        axes.text(-0.1, y, place, ha="right", fontsize=size - 1, color=MUTED)
    for y, (name, found) in enumerate(lines):
        weight = "bold" if name == control else "normal"
        colour = MUTED if name == "base" else INK
        style = {"ha": "right", "va": "center", "fontweight": weight, "color": colour}
        axes.text(-0.1, y + 0.5, panels.shorten(name, left, size), fontsize=size, **style)
        for x, (level, _) in enumerate(columns):
            if level not in found:
                continue
            alpha = LIGHTEST + (DARKEST - LIGHTEST) * min(max(found[level], 0), 1)
            cell = Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=SERIES[0], alpha=alpha)
            cell.set_linewidth(0)
            axes.add_patch(cell)
            tip(cell, f"{name}, difficulty {level}: {100 * found[level]:.1f} %")
            text = f"{100 * found[level]:.0f}"
            axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=size)
    return figure
