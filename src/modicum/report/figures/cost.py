"""Held-out accuracy of runs against what they cost, with the line of those that none beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modicum.report import document
from modicum.report.numbers import count, decimal, limits, mebibytes, percent, short
from modicum.report.style import BROAD, MUTED, NARROW, legend, series, tip
from modicum.report.tables import RunRow
from modicum.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RunCost:
    """What a run may cost: its name, its value, how a value is written."""

    name: str
    of: Callable[[RunResult], float | None]
    show: Callable[[float | None], str]
    log: bool = False


COSTS = (
    RunCost("trained parameters", lambda run: run.trainable_parameters, short, log=True),
    RunCost("peak memory (MiB)", lambda run: mebibytes(run.peak_memory_bytes), count),
    RunCost("seconds of training", lambda run: run.seconds, decimal),
)


def figure(rows: Sequence[RunRow]) -> document.Figure | None:
    """The accuracy against each cost, where there are runs to compare."""
    scored = [row for row in rows if row.result.trained is not None]
    costs = [c for c in COSTS if sum(c.of(row.result) is not None for row in scored) > 1]
    if not costs:
        return None
    return document.Figure(
        "cost",
        f"Held-out accuracy against {', '.join(c.name for c in costs)}; the values are in the"
        " table of results.",
        "Held-out accuracy against what it cost. The line joins the runs that no other beats in"
        " both: each is the best of those that cost no more. One run is one point; the whiskers"
        " are 95% intervals over problems.",
        lambda narrow: _draw(scored, costs, narrow),
    )


def best(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, accuracy) those that no other beats in both, by rising cost."""
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


def _draw(rows: Sequence[RunRow], costs: Sequence[RunCost], narrow: bool) -> Figure:
    from matplotlib.figure import Figure

    columns = 1 if narrow else len(costs)
    lines = len(costs) if narrow else 1
    size = (NARROW, 2.3 * lines + 0.4) if narrow else (BROAD, 3.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, cost in zip(grid, costs, strict=True):
        _scatter(axes, rows, cost)
        axes.set_ylabel("held-out accuracy (%)" if narrow or axes is grid[0] else "")
    legend(figure, {row.result.update: row.colour for row in rows}, dot=True)
    return figure


def _scatter(axes: Axes, rows: Sequence[RunRow], cost: RunCost) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

    points: list[tuple[float, float]] = []
    for row in rows:
        value, score = cost.of(row.result), row.result.trained
        if value is None or score is None or (cost.log and value <= 0):
            continue
        colour, marker, _ = series(row.colour)
        if limits(score.low, score.high):
            axes.vlines(value, 100 * score.low, 100 * score.high, color=colour, linewidth=0.9)
        (dot,) = axes.plot(value, 100 * score.accuracy, marker, color=colour, markersize=6)
        tip(dot, f"{row.label}: {percent(score.accuracy)} %, {cost.show(value)} {cost.name}")
        points.append((value, 100 * score.accuracy))
    edge = best(points)
    axes.plot(*zip(*edge, strict=True), "-", color=MUTED, linewidth=0.9, zorder=1.5)
    axes.set_xlabel(cost.name)
    if cost.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.12, y=0.12)
