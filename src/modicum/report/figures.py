"""Figures of held-out accuracy: a bar for each run, what it cost, and by difficulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modicum.report import frame, tables
from modicum.report.read import Evaluation
from modicum.report.style import BROAD, INK, MUTED, NARROW, PAPER, legend, series, tip, wrapped
from modicum.report.tables import Row, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cost:
    """What a run may cost: its name, the value of a row, how a value is written."""

    name: str
    of: Callable[[Row], float | None]
    show: Callable[[float | None], str]
    log: bool = False


COSTS = (
    Cost("trained parameters", lambda r: r.result.trainable_parameters, tables.short, log=True),
    Cost("peak memory (MiB)", lambda r: _mebibytes(r), tables.count),
    Cost("seconds of training", lambda r: r.result.seconds, tables.decimal),
)


def figures(rows: Sequence[Row]) -> list[frame.Figure]:
    """The bars, and the accuracy against each cost where there are runs to compare."""
    made: list[frame.Figure] = []
    entries = _entries(rows)
    if entries:
        texts = [f"{label} {percent(score.accuracy)} %" for label, _, score in entries]
        made.append(
            frame.Figure(
                "accuracy",
                f"Held-out accuracy: {', '.join(texts)}.",
                "Held-out accuracy. The dashed line is the base model.",
                lambda narrow: bars(rows, narrow),
            )
        )
    scored = [row for row in rows if row.result.trained is not None]
    costs = [c for c in COSTS if sum(c.of(row) is not None for row in scored) > 1]
    if costs:
        made.append(
            frame.Figure(
                "cost",
                f"Held-out accuracy against {', '.join(c.name for c in costs)}; the values are"
                " in the table of results.",
                "Held-out accuracy against what it cost. The line joins the runs that no other"
                " beats in both: each is the best of those that cost no more. One run is one"
                " point; the whiskers are 95% intervals over problems.",
                lambda narrow: frontier(scored, costs, narrow),
            )
        )
    return made


def bars(rows: Sequence[Row], narrow: bool = False) -> Figure:
    """Held-out accuracy of the base and of each trained run.

    A bar is the accuracy over samples with its 95% interval, a diamond the greedy one,
    the dashed line the base. On a phone the names stand above the bars.
    """
    from matplotlib.figure import Figure

    entries = _entries(rows)
    names = [wrapped(label, 3.6 if narrow else 2.4) for label, _, _ in entries]
    lines = max(name.count("\n") for name in names)
    tall = 0.36 + 0.13 * lines + (0.14 if narrow else 0)
    size = (NARROW if narrow else BROAD, tall * len(entries) + 0.95)
    figure = Figure(figsize=size, layout="constrained")
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
    highs = [v for _, _, s in entries for v in (s.accuracy, s.high, s.greedy) if v is not None]
    axes.set_xlim(0, min(100.0, max(5.0, 112 * max(highs))))
    axes.set_xlabel("held-out problems solved (%)")
    _key(figure)
    return figure


def frontier(rows: Sequence[Row], costs: Sequence[Cost], narrow: bool = False) -> Figure:
    """Held-out accuracy against each cost, with the line of those that no other beats."""
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


def best(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (cost, accuracy) those that no other beats in both, by rising cost."""
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


def by_level(
    levels: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str]
) -> list[frame.Figure]:
    """Accuracy by difficulty: (level, accuracy of the base and of each run), as a figure.

    `names` are those of the runs. One level shows nothing: no figure.
    """
    if len(levels) < 2:
        return []
    first, last = levels[0], levels[-1]
    words = ", ".join(
        f"{name} from {percent(a)} % to {percent(b)} %"
        for name, a, b in zip(("base", *names), first[1], last[1], strict=True)
    )
    return [
        frame.Figure(
            "difficulty",
            f"Held-out accuracy from the easiest problems ({first[0]}) to the hardest"
            f" ({last[0]}): {words}.",
            "Held-out accuracy by the task's own measure of difficulty; harder to the right.",
            lambda narrow: _levels(levels, names, narrow),
        )
    ]


def _levels(
    levels: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str], narrow: bool
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(NARROW, 2.7) if narrow else (BROAD, 3.0), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(("base", *names)):
        colour, marker, style = series(number - 1) if number else (INK, "x", "--")
        found = [values[number] for _, values in levels]
        for place, value in enumerate(found):
            if value is not None:
                text = f"{name}, difficulty {levels[place][0]}: {percent(value)} %"
                (dot,) = axes.plot(place, 100 * value, marker, color=colour, markersize=5)
                tip(dot, text)
        known = [float("nan") if v is None else 100 * v for v in found]
        axes.plot(range(len(found)), known, style, color=colour, linewidth=1.4)
    axes.set_xticks(range(len(levels)), [level for level, _ in levels])
    axes.set_xlabel("difficulty")
    axes.set_ylabel("held-out problems solved (%)")
    axes.set_ylim(0, 103)
    legend(figure, {name: number for number, name in enumerate(names)}, base=True)
    return figure


def _mebibytes(row: Row) -> float | None:
    peak = row.result.peak_memory_bytes
    return None if peak is None else peak / 2**20


def _scatter(axes: Axes, rows: Sequence[Row], cost: Cost) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

    points: list[tuple[float, float]] = []
    for row in rows:
        value, score = cost.of(row), row.result.trained
        if value is None or score is None or (cost.log and value <= 0):
            continue
        colour, marker, _ = series(row.colour)
        if score.low is not None and score.high is not None:
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
            entries.append((row.label, series(row.colour)[0], row.result.trained))
    return entries


def _bar(axes: Axes, place: int, colour: str, label: str, score: Evaluation, thick: float) -> None:
    mean = 100 * score.accuracy
    (bar,) = axes.barh(place, mean, height=thick, color=colour, alpha=0.85, linewidth=0)
    text = f"{label}: {mean:.1f} %"
    if score.low is not None and score.high is not None:
        sides = [[mean - 100 * score.low], [100 * score.high - mean]]
        axes.errorbar(mean, place, xerr=sides, color=INK, elinewidth=1.1, capsize=2.5, capthick=1.1)
        text += f" [{percent(score.low)}, {percent(score.high)}]"
    tip(bar, text)
    if score.greedy is not None:
        (diamond,) = axes.plot(100 * score.greedy, place, clip_on=False, zorder=4, **DIAMOND)
        tip(diamond, f"{label}, greedy: {percent(score.greedy)} %")


DIAMOND = {
    "linestyle": "",
    "marker": "D",
    "markersize": 4.5,
    "markerfacecolor": PAPER,
    "markeredgecolor": INK,
    "markeredgewidth": 1.0,
}


def _key(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(color=MUTED, linewidth=0), Line2D([], [], color=INK, linewidth=1.1)]
    names = ["sampled", "95% interval", "greedy"]
    diamond = Line2D([], [])
    diamond.set(**DIAMOND)
    figure.legend([*handles, diamond], names, loc="outside upper left", ncols=3)
