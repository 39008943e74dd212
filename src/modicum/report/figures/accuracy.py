"""Held-out accuracy of the base and of each run: a bar with its interval, a diamond for greedy."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from modicum.report import document, style
from modicum.report.style import BROAD, INK, MUTED, NARROW, PAPER, Axes, Figure, tip
from modicum.report.tables import RunRow
from modicum.report.words import interval, percent
from modicum.results import Evaluation

DIAMOND: dict[str, Any] = {
    **{"linestyle": "", "marker": "D", "markersize": 4.5},
    **{"markerfacecolor": PAPER, "markeredgecolor": INK, "markeredgewidth": 1.0},
}


def figure(rows: Sequence[RunRow]) -> document.Figure | None:
    """The bars, where any run was evaluated."""
    texts = [f"{label} {percent(score.accuracy)} %" for label, _, score in _entries(rows)]
    draw = partial(_bars, rows)
    return document.figure("accuracy", draw, texts=", ".join(texts)) if texts else None


def _bars(rows: Sequence[RunRow], narrow: bool) -> Figure:
    """The figure. The dashed line is the base; on a phone the names stand above the bars."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries = _entries(rows)
    names = [style.wrapped(label, 3.6 if narrow else 2.4) for label, _, _ in entries]
    lines = max(name.count("\n") for name in names)
    tall = 0.36 + 0.13 * lines + (0.14 if narrow else 0)
    figure = style.blank(NARROW if narrow else BROAD, tall * len(entries) + 0.95, fitted=True)
    axes = figure.subplots()
    axes.grid(axis="y", visible=False)
    thick = 0.21 / tall
    for place, (label, colour, score) in enumerate(entries):
        _bar(axes, place, colour, label, score, thick)
        if colour == MUTED:
            axes.axvline(100 * score.accuracy, color=INK, linewidth=0.9, dashes=(4, 3))
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


def _entries(rows: Sequence[RunRow]) -> list[tuple[str, str, Evaluation]]:
    """Label, colour and scores of each bar: the bases that differ, then the runs."""
    bases: dict[str, tuple[str, Evaluation]] = {}
    for label, base in ((row.label, row.result.base) for row in rows):
        if base is not None:
            bases.setdefault(repr(base), (f"base of {label}", base))
    names = [("base" if len(bases) == 1 else name, MUTED, base) for name, base in bases.values()]
    trained = ((row.label, style.series(row.colour)[0], row.result.trained) for row in rows)
    return names + [(label, colour, score) for label, colour, score in trained if score is not None]


def _bar(axes: Axes, place: int, colour: str, label: str, score: Evaluation, thick: float) -> None:
    mean = 100 * score.accuracy
    (bar,) = axes.barh(place, mean, height=thick, color=colour, alpha=0.85, linewidth=0)
    ends = interval(score.low, score.high, percent)
    if ends:
        sides = [[mean - 100 * score.low], [100 * score.high - mean]]
        axes.errorbar(mean, place, xerr=sides, color=INK, elinewidth=1.1, capsize=2.5, capthick=1.1)
    tip(bar, f"{label}: {mean:.1f} % {ends}".strip())
    if not math.isnan(score.greedy):
        (diamond,) = axes.plot(100 * score.greedy, place, clip_on=False, zorder=4, **DIAMOND)
        tip(diamond, f"{label}, greedy: {percent(score.greedy)} %")
