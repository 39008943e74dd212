"""Accuracy of the base and of each run or arm: bars with intervals; by difficulty."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from modicum.report import document, style
from modicum.report.study.read import ranked
from modicum.report.style import INK, MUTED, PAPER, SERIES, Figure
from modicum.report.tables import RunRow
from modicum.report.words import interval, percent
from modicum.results import Analysis, Evaluation

WHISKER: dict[str, Any] = {"color": INK, "elinewidth": 1.1, "capsize": 2.5, "capthick": 1.1}
LIGHTEST, DARKEST = 0.04, 0.5  # the ink in a cell stays readable, in dark mode too
MOST = 12  # levels that fit a page
# How often the base solves a problem, as analyses have it and as a reader does; the hardest first.
SOLVED = {"base: 0 %": "0 %", "to 50 %": "to 50 %", "above": "above 50 %"}
Rows = Sequence[tuple[str, Mapping[str, float]]]  # name -> accuracy by level, where it is known
DIAMOND: dict[str, Any] = {"linestyle": "", "marker": "D", "markersize": 4.5}
DIAMOND |= {"markerfacecolor": PAPER, "markeredgecolor": INK, "markeredgewidth": 1.0}


def figure(rows: Sequence[RunRow]) -> document.Figure | None:
    """The bars, where any run was evaluated: of the bases that differ, then of the runs."""
    bases: dict[str, tuple[str, Evaluation]] = {}
    for row in rows:
        if (base := row.result.base) is not None:
            bases.setdefault(repr(base), (f"base of {row.label}", base))
    found = [("base" if len(bases) == 1 else name, MUTED, base) for name, base in bases.values()]
    found += [(r.label, style.series(r.colour)[0], s) for r in rows if (s := r.result.trained)]
    return document.figure("accuracy", partial(_bars, found), of=found) if found else None


def _bars(entries: Sequence[tuple[str, str, Evaluation]], narrow: bool) -> Figure:
    """Label, colour, scores as a figure: the base dashed; on a phone names are above the bars."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = [style.wrapped(label, 3.6 if narrow else 2.4) for label, _, _ in entries]
    lines = max(name.count("\n") for name in names)
    tall = 0.36 + 0.13 * lines + (0.14 if narrow else 0)
    figure = style.blank(style.across(narrow), tall * len(entries) + 0.95, fitted=True)
    axes = figure.subplots()
    axes.grid(axis="y", visible=False)
    thick = 0.21 / tall
    for place, (label, colour, score) in enumerate(entries):
        mean, low, high = 100 * score.accuracy, 100 * score.low, 100 * score.high
        ends = interval(score.low, score.high, percent)
        tip = style.tip(f"{label}: {mean:.1f} % {ends}".strip())
        axes.barh(place, mean, height=thick, color=colour, alpha=0.85, linewidth=0, gid=tip)
        if ends:
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], **WHISKER)
        if not math.isnan(score.greedy):
            tip = style.tip(f"{label}, greedy: {percent(score.greedy)} %")
            axes.plot(100 * score.greedy, place, clip_on=False, zorder=4, gid=tip, **DIAMOND)
        if colour == MUTED:
            axes.axvline(mean, color=INK, linewidth=0.9, dashes=(4, 3))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_yticks(range(len(entries)), [""] * len(entries) if narrow else names)
    for place, name in enumerate(names if narrow else ()):
        across = axes.get_yaxis_transform()  # across in shares of the width
        text = axes.text(0.005, place - thick / 2 - 0.04, name, va="bottom", transform=across)
        text.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 0.6})
    highs = [v for _, _, s in entries for v in (s.accuracy, s.high, s.greedy) if not math.isnan(v)]
    axes.set_xlim(0, min(100.0, max(5.0, 112 * max(highs))))
    axes.set_ylim(len(entries) - 1 + thick, -1 + thick if narrow else -thick)
    axes.set_xlabel("held-out problems solved (%)")
    sampled, whisker = Patch(color=MUTED, linewidth=0), Line2D([], [], color=INK, linewidth=1.1)
    handles = {"sampled": sampled, "95% interval": whisker, "greedy": Line2D([], [], **DIAMOND)}
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=3)
    return figure


def levels(analysis: Analysis) -> dict[str, int]:
    """Level -> number of problems, easy ones first (as numbers where they are)."""
    found = {_named(lv.level): lv.problems for arm in analysis.arms for lv in arm.difficulty}
    numbers = {name: float(place) for place, name in enumerate(SOLVED.values())}
    numbers |= {level: float(level) for level in found if level.replace(".", "", 1).isdigit()}
    order = sorted(found, key=lambda level: (level not in numbers, numbers.get(level, 0.0), level))
    return {level: found[level] for level in order}


def rows(analysis: Analysis) -> Rows:
    """Name -> accuracy by level: the base, then the arms as the forest plot has them."""
    arms = [arm for arm in ranked(analysis) if arm.difficulty]
    base = {_named(v.level): v.base for a in arms for v in a.difficulty if v.base is not None}
    found: list[tuple[str, Mapping[str, float]]] = [("base", base)] if base else []
    for arm in arms:
        scores = {_named(v.level): v.accuracy for v in arm.difficulty if v.accuracy is not None}
        found.append((arm.name, scores))
    return found


def _named(level: str) -> str:
    return SOLVED.get(level, level)


def by_difficulty(
    known: Mapping[str, int], rows: Rows, what: str, bold: str = ""
) -> document.Figure | None:
    """The numbers, where there is more than one level; `what` says of which problems."""
    if len(known) < 2:
        return None
    values = [f"{n} {', '.join(percent(of.get(k), 0) for k in known)}" for n, of in rows]
    draw = partial(cells, known, rows, bold)
    return document.figure("difficulty", draw, levels=list(known), values=values, what=what)


def cells(known: Mapping[str, int], rows: Rows, bold: str, narrow: bool) -> Figure:
    """The figure; shades go from 0 to 100 % in every cell."""
    from matplotlib.patches import Rectangle

    columns = list(known.items())[:MOST]
    across, row, size = style.across(narrow), *((0.27, 7) if narrow else (0.25, 8))
    left = min(1.45 if narrow else 2.5, style.width_of([name for name, _ in rows], size) + 0.1)
    left = max(left, style.width_of(["base solves"], size - 1) + 0.1)
    width = min(0.8, (across - left - 0.05) / len(columns))
    figure = style.blank(across, row * len(rows) + 0.48)
    axes = style.place(figure, left, 0.42, width * len(columns), row * len(rows))
    axes.set_axis_off()
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    for x, (level, count) in enumerate(columns):
        axes.text(x + 0.5, -0.15, f"{count}", ha="center", fontsize=size - 1, color=MUTED)
        text = style.shorten(level, width, size)
        axes.text(x + 0.5, -0.85, text, ha="center", fontsize=size, fontweight="bold")
    what = "base solves" if set(known) <= set(SOLVED.values()) else "difficulty"
    for y, place in ((-0.85, what), (-0.15, "problems")):
        axes.text(-0.1, y, place, ha="right", fontsize=size - 1, color=MUTED)
    for y, (name, found) in enumerate(rows):
        look = {"ha": "right", "va": "center", "color": MUTED if name == "base" else INK}
        look["fontweight"] = "bold" if name == bold else "normal"
        axes.text(-0.1, y + 0.5, style.shorten(name, left, size), fontsize=size, **look)
        for x, (level, _) in enumerate(columns):
            if level not in found:
                continue
            alpha = LIGHTEST + (DARKEST - LIGHTEST) * min(max(found[level], 0), 1)
            tip = style.tip(f"{name}, difficulty {level}: {100 * found[level]:.1f} %")
            shade = {"facecolor": SERIES[0], "alpha": alpha, "linewidth": 0, "gid": tip}
            axes.add_patch(Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, **shade))
            text = percent(found[level], 0)
            axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=size)
    return figure
