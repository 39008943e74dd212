"""Held-out accuracy of runs against what they cost, with the line of those that none beats."""

from collections.abc import Sequence

from modicum.report import document
from modicum.report.figures.frontier import Axis
from modicum.report.numbers import count, decimal, limits, mebibytes, percent, short
from modicum.report.style import BROAD, MUTED, NARROW, Axes, Figure, blank, legend, series, tip
from modicum.report.tables import RunRow

COSTS = (
    Axis("parameters", "trained parameters", lambda r: r.trainable_parameters, short, log=True),
    Axis("memory", "peak memory (MiB)", lambda r: mebibytes(r.peak_memory_bytes), count),
    Axis("time", "seconds of training", lambda r: r.seconds, decimal),
)


def figure(rows: Sequence[RunRow]) -> document.Figure | None:
    """The accuracy against each cost, where there are runs to compare."""
    scored = [row for row in rows if row.result.trained is not None]
    costs = [c for c in COSTS if sum(c.value(row.result) is not None for row in scored) > 1]
    if not costs:
        return None
    return document.Figure(
        "cost",
        f"Held-out accuracy against {', '.join(c.title for c in costs)}; the values are in the"
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


def _draw(rows: Sequence[RunRow], costs: Sequence[Axis], narrow: bool) -> Figure:
    columns = 1 if narrow else len(costs)
    lines = len(costs) if narrow else 1
    size = (NARROW, 2.3 * lines + 0.4) if narrow else (BROAD, 3.1)
    figure = blank(*size, fitted=True)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, cost in zip(grid, costs, strict=True):
        _scatter(axes, rows, cost)
        axes.set_ylabel("held-out accuracy (%)" if narrow or axes is grid[0] else "")
    legend(figure, {row.result.update: row.colour for row in rows}, dot=True)
    return figure


def _scatter(axes: Axes, rows: Sequence[RunRow], cost: Axis) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

    points: list[tuple[float, float]] = []
    for row in rows:
        value, score = cost.value(row.result), row.result.trained
        if value is None or score is None or (cost.log and value <= 0):
            continue
        colour, marker, _ = series(row.colour)
        if limits(score.low, score.high):
            axes.vlines(value, 100 * score.low, 100 * score.high, color=colour, linewidth=0.9)
        (dot,) = axes.plot(value, 100 * score.accuracy, marker, color=colour, markersize=6)
        tip(dot, f"{row.label}: {percent(score.accuracy)} %, {cost.text(value)} {cost.title}")
        points.append((value, 100 * score.accuracy))
    edge = best(points)
    axes.plot(*zip(*edge, strict=True), "-", color=MUTED, linewidth=0.9, zorder=1.5)
    axes.set_xlabel(cost.title)
    if cost.log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.12, y=0.12)
