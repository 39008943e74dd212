"""Figures of what happened during training: learning curves and small multiples."""

from collections.abc import Sequence

from modicum.logged import Metric
from modicum.report import document
from modicum.report.document import Table
from modicum.report.figures import curves
from modicum.report.figures.curves import AXES, Line
from modicum.report.numbers import ARROW, NONE, general, listed
from modicum.report.read import Columns, RunRecord, colours
from modicum.report.style import BROAD, INK, NARROW, Axes, Figure, blank, legend, series
from modicum.report.words import say
from modicum.results import Column

RAW_SHOWN = 8  # with more runs the raw values would hide the lines
NAMED = 8  # lines that a text names


def figures(records: Sequence[RunRecord], base: Sequence[float]) -> list[document.Figure]:
    """The learning curves and the small multiples of all else that was logged.

    `base` holds the held-out accuracies of the untrained models, as fractions.
    """
    found = curves.metrics([record.columns for record in records])
    known = {metric.key: metric for metric in found}
    main = known.get(curves.ACCURACY, known.get("reward/mean"))
    rest = [metric for metric, same in found.items() if not same and metric != main]
    still = [same for metric, same in found.items() if same and metric != main]
    seeds = len(_shown(records)) < len(records)
    raw = not seeds and len(records) <= RAW_SHOWN
    values = {"behind": say("behind", seeds=seeds, raw=raw), "still": still}
    made: list[document.Figure] = []
    if main is not None:
        axes = [axis for axis in AXES if _lines(records, main, axis)]
        dashed = sorted({100 * b for b in base}) if main.key == curves.ACCURACY else []
        shown = [(main, axis) for axis in axes]
        said = {"words": _words(records, main), "title": main.title, "dashed": dashed}
        said["axes"] = listed([AXES[axis] for axis in axes])
        made.append(
            document.figure(
                "learning", lambda n: _draw(records, shown, n, dashed), **values, **said
            )
        )
    if rest:
        panels = [(metric, "step") for metric in rest]
        said = {"words": _words(records, rest[0]), "titles": ", ".join(m.words for m in rest)}
        made.append(
            document.figure("training", lambda n: _draw(records, panels, n), **values, **said)
        )
    return made


def table(records: Sequence[RunRecord], names: Sequence[str]) -> Table | None:
    """Every curve in numbers: means over the first and the last tenth of each run's steps."""
    measures = [
        (f"{m.title}, {m.shown}", [_ends(curves.values(r.columns, m)[1]) for r in records])
        for m, still in curves.metrics([record.columns for record in records]).items()
        if not still
    ]
    return document.across("The curves in numbers", measures, names)


def _shown(records: Sequence[RunRecord]) -> dict[str, int]:
    return {r.update: n for r, n in zip(records, colours(records), strict=True)}


def _lines(
    records: Sequence[RunRecord], metric: Metric, axis: str = "step"
) -> dict[str, tuple[Line, list[Columns]]]:
    """The line of each update that has values, and its seeds."""
    seeds = {
        update: [r.columns for r in records if r.update == update] for update in _shown(records)
    }
    lines = {update: curves.line(found, metric, axis) for update, found in seeds.items()}
    return {update: (found, seeds[update]) for update, found in lines.items() if found}


def _draw(
    records: Sequence[RunRecord],
    panels: Sequence[tuple[Metric, str]],
    narrow: bool,
    base: Sequence[float] = (),
) -> Figure:
    """A panel for each metric and its axis, with the line of every update."""
    columns = 1 if narrow else min(3, len(panels))
    rows, one = -(-len(panels) // columns), len({metric for metric, _ in panels}) == 1
    width, height = (NARROW, 2.1) if narrow else (BROAD, 2.8 if one else 2.1)
    figure = blank(width, height * rows + 0.4, fitted=True)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = _shown(records)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, (metric, axis)) in enumerate(zip(grid, panels, strict=False)):
        for update, (line, seeds) in _lines(records, metric, axis).items():
            colour, marker, style = series(shown[update])
            if len(seeds) == 1 and len(records) <= RAW_SHOWN:
                axes.plot(*curves.values(seeds[0], metric, axis), color=colour, alpha=0.25, lw=0.7)
            line.draw(axes, colour, update, style, 1.6)
            if len(shown) > 1 or len(line.x) == 1:
                # Each line has its marks at places of its own.
                every = max(1, len(line.x) // 5)
                place = (shown[update] * every // 6 % every, every)
                axes.lines[-1].set(marker=marker, markersize=3.6, markevery=place)
        for value in base:
            axes.axhline(value, color=INK, linewidth=0.9, dashes=(4, 3))
        _frame(axes, metric, axis)
        if one and number:
            axes.set_title("")
            axes.set_ylabel(metric.shown if narrow else "")
        if not one and not narrow and number < len(panels) - columns:
            axes.set_xlabel("")
    legend(figure, [(update, *series(n)) for update, n in shown.items()], bool(base))
    return figure


def _frame(axes: Axes, metric: Metric, axis: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(metric.title)
    axes.set_ylabel(metric.shown)
    axes.set_xlabel(AXES[axis])
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=axis == "step"))
    if axis == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_ylim()[1] >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_ylim()[0] > 0 or metric.factor == 100:
        axes.set_ylim(bottom=0)


def _ends(column: Column) -> str:
    tenth = max(1, len(column) // 10)
    parts = (column[:tenth], column[-tenth:])
    return ARROW.join(general(float(part.mean())) for part in parts) if column.size else NONE


def _words(records: Sequence[RunRecord], metric: Metric) -> str:
    """The start and the end of the first lines of a panel, in words."""
    texts = [f"{update} {line.ends()}" for update, (line, _) in _lines(records, metric).items()]
    more = [f"and {len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return f"{metric.title} in {metric.shown}: {', '.join([*texts[:NAMED], *more])}."
