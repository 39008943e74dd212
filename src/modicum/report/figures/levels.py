"""Held-out accuracy of the base and of each run by the difficulty of the problems."""

from collections.abc import Sequence
from dataclasses import dataclass

from modicum.report import document
from modicum.report.document import Table
from modicum.report.numbers import percent
from modicum.report.style import BROAD, INK, NARROW, Figure, blank, legend, series, tip


@dataclass(frozen=True)
class LevelScores:
    """Problems of one difficulty; accuracies of the base (None: not known) and of each run."""

    name: str
    problems: int
    accuracy: tuple[float | None, ...]


def table(levels: Sequence[LevelScores], names: Sequence[str]) -> Table | None:
    """The accuracies; `names` are those of the runs. One level shows nothing."""
    heads = ["difficulty", "problems", "base (%)", *(f"{name} (%)" for name in names)]
    rows = [
        [level.name, str(level.problems), *(percent(a) for a in level.accuracy)] for level in levels
    ]
    name = "Held-out accuracy by difficulty"
    return document.table(name, heads, rows) if len(levels) > 1 else None


def figure(levels: Sequence[LevelScores], names: Sequence[str]) -> document.Figure | None:
    """The same, drawn."""
    if len(levels) < 2:
        return None
    first, last = levels[0], levels[-1]
    words = ", ".join(
        f"{name} from {percent(a)} % to {percent(b)} %"
        for name, a, b in zip(("base", *names), first.accuracy, last.accuracy, strict=True)
    )
    return document.Figure(
        "difficulty",
        f"Held-out accuracy from the easiest problems ({first.name}) to the hardest"
        f" ({last.name}): {words}.",
        "Held-out accuracy by the task's own measure of difficulty; harder to the right.",
        lambda narrow: _draw(levels, names, narrow),
    )


def _draw(levels: Sequence[LevelScores], names: Sequence[str], narrow: bool) -> Figure:
    figure = blank(*((NARROW, 2.7) if narrow else (BROAD, 3.0)), fitted=True)
    axes = figure.subplots()
    for number, name in enumerate(("base", *names)):
        colour, marker, style = series(number - 1) if number else (INK, "x", "--")
        found = [level.accuracy[number] for level in levels]
        for place, value in enumerate(found):
            if value is not None:
                text = f"{name}, difficulty {levels[place].name}: {percent(value)} %"
                (dot,) = axes.plot(place, 100 * value, marker, color=colour, markersize=5)
                tip(dot, text)
        known = [float("nan") if v is None else 100 * v for v in found]
        axes.plot(range(len(found)), known, style, color=colour, linewidth=1.4)
    axes.set_xticks(range(len(levels)), [level.name for level in levels])
    axes.set_xlabel("difficulty")
    axes.set_ylabel("held-out problems solved (%)")
    axes.set_ylim(0, 103)
    legend(figure, {name: number for number, name in enumerate(names)}, base=True)
    return figure
