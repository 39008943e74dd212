"""Figures as SVG text: training curves and held-out accuracy.

matplotlib is imported only when a figure is drawn, and never its pyplot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modicum.report.read import Evaluation, RunRecord, colours
from modicum.report.style import INK, MUTED, SERIES, STYLE, STYLES, Style, svg
from modicum.report.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One small multiple: a metric, its title, its unit and the factor to that unit."""

    metric: str
    title: str
    unit: str
    factor: float = 1.0


PANELS = (
    Panel("reward/accuracy", "Accuracy on training samples", "correct completions (%)", 100),
    Panel("completions/length_mean", "Completion length", "tokens per completion"),
    Panel("policy/entropy", "Entropy of the policy", "nats per token"),
    Panel("time/step_seconds", "Time per step", "seconds"),
    Panel("reward/mean", "Reward", "mean reward per completion"),
)


def curves(records: Sequence[RunRecord], columns: int = 2) -> str:
    """Small multiples against the step as one SVG, or "" when no run has logged any.

    The first four of PANELS that any run has, `columns` side by side (1 suits a phone).
    A line is a centred mean over a tenth of the steps, the raw values behind it are
    faint, and the dashed line is the base model's held-out accuracy.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [p for p in PANELS if any(_points(r, p)[0].size for r in records)][:4]
    if not panels:
        return ""
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    size = (4.8 * columns, 2.75 * lines) if columns > 1 else (4.2, 2.35 * lines)
    with rc_context(STYLE | {"font.size": 8, "axes.titlesize": 9, "legend.fontsize": 8}):
        figure = Figure(figsize=(size[0], size[1] + 0.4), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _curve(axes, records, panel)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        found = [_base(record) for record in records]
        bases = {base.accuracy for base in found if base is not None}
        if panels[0].metric == "reward/accuracy":
            for accuracy in sorted(bases):
                grid[0].axhline(100 * accuracy, color=INK, linewidth=0.9, dashes=(4, 3))
        _legend(figure, records, bool(bases) and panels[0].metric == "reward/accuracy")
        names = ", ".join(panel.title.lower() for panel in panels)
        return svg(figure, f"Against the training step: {names}")


def bars(rows: Sequence[Row], width: float = 9.6) -> str:
    """Held-out accuracy of the base and of each trained run as one SVG, or "".

    A bar is the accuracy over samples with its 95% interval, a diamond the greedy one,
    the dashed line the base. `width` is in inches (4.2 suits a phone).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    entries = _entries(rows)
    if not entries:
        return ""
    with rc_context(STYLE | {"font.size": 8, "legend.fontsize": 8, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(width, 0.36 * len(entries) + 0.95), layout="constrained")
        axes = figure.subplots()
        for place, (_, colour, score) in enumerate(entries):
            _bar(axes, place, colour, score)
        for _, colour, score in entries:
            if colour == MUTED:
                axes.axvline(100 * score.accuracy, color=INK, linewidth=0.9, dashes=(4, 3))
        axes.set_yticks(range(len(entries)), [label for label, _, _ in entries])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(entries) - 0.4, -0.6)
        highs = [v for _, _, s in entries for v in (s.accuracy, s.high, s.greedy) if v is not None]
        axes.set_xlim(0, min(100.0, max(5.0, 112 * max(highs))))
        axes.set_xlabel("held-out problems solved (%)")
        _key(figure)
        return svg(figure, "Held-out accuracy of the base model and of each trained run")


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred mean over about a tenth of `values` (window of 1 for fewer than 20)."""
    half = len(values) // 20
    window = np.ones(2 * half + 1)
    weights = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(values, window, mode="same") / weights


def _base(record: RunRecord) -> Evaluation | None:
    return None if record.result is None else record.result.base


def _points(record: RunRecord, panel: Panel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    steps = record.metrics.get("step", np.empty(0))
    values = record.metrics.get(panel.metric, np.full(len(steps), np.nan))
    seen = np.isfinite(values)
    return steps[seen], panel.factor * values[seen]


def _series(colour: int) -> tuple[str, Style]:
    """A colour and a line style; beyond six updates the style tells them apart."""
    return SERIES[colour % len(SERIES)], STYLES[colour // len(SERIES) % len(STYLES)]


def _curve(axes: Axes, records: Sequence[RunRecord], panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    for record, number in zip(records, colours(records), strict=True):
        steps, values = _points(record, panel)
        if not steps.size:
            continue
        colour, style = _series(number)
        marker = "o" if steps.size == 1 else ""
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
        axes.plot(steps, smooth(values), style, color=colour, linewidth=1.7, marker=marker)
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.margins(x=0.02)
    if axes.get_ylim()[0] > 0 or panel.factor == 100:
        axes.set_ylim(bottom=0)


def _legend(figure: Figure, records: Sequence[RunRecord], base: bool) -> None:
    from matplotlib.lines import Line2D

    shown = {record.update: _series(n) for record, n in zip(records, colours(records), strict=True)}
    handles = [Line2D([], [], color=c, linestyle=s, linewidth=2) for c, s in shown.values()]
    names = list(shown)
    if base:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, dashes=(4, 3)))
        names.append("base, held out")
    # About 14 letters fit an inch; what does not fit goes to a further line.
    letters = max(len(name) for name in names) + 6
    columns = max(1, min(len(names), int(14 * figure.get_figwidth() / letters)))
    figure.legend(handles, names, loc="outside upper left", ncols=columns)


def _entries(rows: Sequence[Row]) -> list[tuple[str, str, Evaluation]]:
    """Label, colour and scores of each bar: the bases that differ, then the runs."""
    bases: dict[Evaluation, str] = {}
    for row in rows:
        if row.result.base is not None:
            bases.setdefault(row.result.base, row.label)
    entries = [
        ("base" if len(bases) == 1 else f"base of {label}", MUTED, score)
        for score, label in bases.items()
    ]
    for row in rows:
        if row.result.trained is not None:
            entries.append((row.label, _series(row.colour)[0], row.result.trained))
    return entries


def _bar(axes: Axes, place: int, colour: str, score: Evaluation) -> None:
    mean = 100 * score.accuracy
    axes.barh(place, mean, height=0.58, color=colour, alpha=0.85, linewidth=0)
    if score.low is not None and score.high is not None:
        sides = [[mean - 100 * score.low], [100 * score.high - mean]]
        axes.errorbar(mean, place, xerr=sides, color=INK, elinewidth=1.1, capsize=2.5, capthick=1.1)
    if score.greedy is not None:
        # Above the bar's middle, so that it does not hide the interval.
        axes.plot(
            100 * score.greedy,
            place,
            marker="D",
            markersize=4.5,
            markerfacecolor="#ffffff",
            markeredgecolor=INK,
            markeredgewidth=1.0,
            clip_on=False,
            zorder=4,
        )


def _key(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    diamond = Line2D(
        [],
        [],
        linestyle="",
        marker="D",
        markersize=4.5,
        markerfacecolor="#ffffff",
        markeredgecolor=INK,
    )
    handles = [Patch(color=MUTED, linewidth=0), Line2D([], [], color=INK, linewidth=1.1), diamond]
    names = ["sampled", "95% interval", "greedy"]
    figure.legend(handles, names, loc="outside upper left", ncols=3)
