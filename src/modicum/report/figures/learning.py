"""Figures of what happened during training: learning curves and small multiples."""

from collections.abc import Sequence

import numpy as np

from modicum.logged import Metric
from modicum.report import document
from modicum.report.document import Table
from modicum.report.figures import curves
from modicum.report.figures.curves import AXES, Against, Line
from modicum.report.numbers import ARROW, NONE, general, listed
from modicum.report.read import RunRecord, colours
from modicum.report.style import BROAD, INK, NARROW, Axes, Figure, blank, legend, name, series
from modicum.results import Column


def figures(records: Sequence[RunRecord], base: Sequence[float]) -> list[document.Figure]:
    """The learning curves and the small multiples of all else that was logged.

    `base` holds the held-out accuracies of the untrained models, as fractions.
    """
    found = curves.panels(records)
    known = {p.key: p for p in found}
    main = known.get(curves.ACCURACY, known.get("reward/mean"))
    made: list[document.Figure] = []
    if main is not None:
        axes = tuple(axis for axis in AXES if curves.lines(records, main, axis))
        dashed = tuple(100 * b for b in base) if main.key == curves.ACCURACY else ()
        made.append(
            document.Figure(
                "learning",
                _words(records, main),
                f"{main.title} against {listed([AXES[a] for a in axes])}. {_behind(records)}"
                + (" The dashed line is the base model's held-out accuracy." if dashed else ""),
                lambda narrow: _learning(records, main, axes, dashed, narrow),
            )
        )
    still = {p: v for p in found if (v := curves.constant(records, p)) and p != main}
    moving = [p for p in found if p not in still and p != main]
    fixed = [f"{p.words} ({listed([general(x) for x in v])})" for p, v in still.items()]
    note = f" The same in every step of a run: {'; '.join(fixed)}." if fixed else ""
    if moving:
        titles = ", ".join(p.words for p in moving)
        made.append(
            document.Figure(
                "training",
                f"Against the step: {titles}. {_words(records, moving[0])}",
                f"What else was logged, against the step. {_behind(records)}{note}",
                lambda narrow: _multiples(records, moving, narrow),
            )
        )
    return made


def table(records: Sequence[RunRecord], names: Sequence[str]) -> Table | None:
    """Every curve in numbers: means over the first and the last tenth of each run's steps."""
    measures = [
        (f"{p.title}, {p.shown}", [_ends(curves.values(record, p)[1]) for record in records])
        for p in curves.panels(records)
        if not curves.constant(records, p)
    ]
    return document.across("The curves in numbers", measures, names)


def _draw(axes: Axes, found: Sequence[Line], panel: Metric, axis: Against, many: bool) -> None:
    for line in found:
        colour, marker, style = series(line.number)
        if line.raw is not None:
            axes.plot(line.x, line.raw, color=colour, alpha=0.25, linewidth=0.7)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
        keep = np.unique(np.linspace(0, len(line.x) - 1, curves.POINTS).round().astype(int))
        x, y = line.x[keep], line.mean[keep]
        (drawn,) = axes.plot(x, y, style, color=colour, linewidth=1.6)
        if many or len(x) == 1:
            # Each line has its marks at places of its own.
            every = max(1, len(x) // 5)
            drawn.set_marker(marker)
            drawn.set_markersize(3.6)
            drawn.set_markevery((line.number * every // 6 % every, every))
        name(drawn, line.label)
    axes.set_title(panel.title)
    axes.set_ylabel(panel.shown)
    axes.set_xlabel(AXES[axis])
    _ticks(axes, axis)
    if axes.get_ylim()[0] > 0 or panel.factor == 100:
        axes.set_ylim(bottom=0)


def _ticks(axes: Axes, axis: Against) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=axis == "step"))
    if axis == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_ylim()[1] >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _grid(number: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    rows = -(-number // columns)
    figure = blank(size[0], size[1] * rows + 0.4, fitted=True)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[number:]:
        axes.set_axis_off()
    return figure, list(grid[:number])


def _shown(records: Sequence[RunRecord]) -> dict[str, int]:
    return {r.update: n for r, n in zip(records, colours(records), strict=True)}


def _learning(
    records: Sequence[RunRecord],
    panel: Metric,
    against: Sequence[Against],
    base: Sequence[float],
    narrow: bool,
) -> Figure:
    size = (NARROW, 2.3) if narrow else (BROAD, 2.8)
    figure, grid = _grid(len(against), 1 if narrow else len(against), size)
    shown = _shown(records)
    for number, (axes, axis) in enumerate(zip(grid, against, strict=True)):
        _draw(axes, curves.lines(records, panel, axis), panel, axis, len(shown) > 1)
        for value in sorted(set(base)):
            axes.axhline(value, color=INK, linewidth=0.9, dashes=(4, 3))
        if number:
            axes.set_title("")
            axes.set_ylabel(panel.shown if narrow else "")
    legend(figure, shown, bool(base))
    return figure


def _multiples(records: Sequence[RunRecord], found: Sequence[Metric], narrow: bool) -> Figure:
    columns = 1 if narrow else min(3, len(found))
    figure, grid = _grid(len(found), columns, (NARROW, 1.9) if narrow else (BROAD, 2.1))
    shown = _shown(records)
    for axes, panel in zip(grid, found, strict=True):
        _draw(axes, curves.lines(records, panel), panel, "step", len(shown) > 1)
        if not narrow:
            axes.set_xlabel("step" if axes in grid[-columns:] else "")
    legend(figure, shown)
    return figure


def _ends(column: Column) -> str:
    if not column.size:
        return NONE
    tenth = max(1, len(column) // 10)
    first, last = (general(float(part.mean())) for part in (column[:tenth], column[-tenth:]))
    return first + ARROW + last


def _words(records: Sequence[RunRecord], panel: Metric) -> str:
    """The start and the end of the first lines of a panel, in words."""
    found = curves.lines(records, panel)
    texts = [f"{n.label} from {general(n.mean[0])} to {general(n.mean[-1])}" for n in found[:8]]
    more = f", and {len(found) - 8} more" if len(found) > 8 else ""
    return f"{panel.title} in {panel.shown}: {', '.join(texts)}{more}."


def _behind(records: Sequence[RunRecord]) -> str:
    text = "Lines are centred means over a tenth of the steps"
    if len(_shown(records)) < len(records):
        return f"{text}, and over the seeds; bands go from the lowest to the highest seed."
    return (
        f"{text}; the faint ones are the raw values."
        if len(records) <= curves.RAW_SHOWN
        else f"{text}."
    )
