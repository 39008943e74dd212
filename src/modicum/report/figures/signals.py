"""What else the runs logged, as a table of small curves: a row an arm, a column a metric.

Every column has one scale, from the lowest to the highest value in it. The number at the right
of a curve is its last value, the grey curve behind it is the control's.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from modicum.logged import Metric
from modicum.report import document
from modicum.report.figures import curves, panels
from modicum.report.figures.arm_curves import arms, lines
from modicum.report.figures.curves import Line
from modicum.report.numbers import brief, listed
from modicum.report.study.families import CONTROL, family
from modicum.report.study.read import StudyRecord
from modicum.report.style import BROAD, GRID, INK, MUTED, NARROW, Axes, Figure, blank

COLUMNS = 9  # side by side on a page
Lines = Mapping[str, Line | None]  # by an arm's slug


def gather(study: StudyRecord) -> tuple[dict[Metric, Lines], list[str]]:
    """The metrics that move with a curve for each arm, and words on those that never did."""
    columns = [c for found in study.curves.values() for c in found.seeds.values()]
    found = curves.metrics(columns, short=True)
    moving: dict[Metric, Lines] = {
        metric: lines(study, metric) for metric, same in found.items() if not same
    }
    return moving, [same for same in found.values() if same]


def figure(study: StudyRecord) -> document.Figure | None:
    """The table of curves, where any metric moves."""
    moving, still = gather(study)
    control = study.control
    ends = [
        f"{metric.words} {line.ends()}"
        for metric, found in moving.items()
        if (line := found.get(control.slug))
    ]
    if not moving:
        return None
    names = listed([metric.words for metric in moving])
    values = {"names": names, "ends": ends, "control": control.name, "still": still}
    return document.figure("signals", partial(_draw, study, moving), **values)


def _draw(study: StudyRecord, moving: Mapping[Metric, Lines], narrow: bool) -> Figure:
    """One block of all columns for a page, blocks of three for a phone."""
    names, signals = [arm.name for arm in arms(study)], list(moving.items())
    across, row, head = (NARROW, 0.42, 0.42) if narrow else (BROAD, 0.3, 0.42)
    left = 0.05 if narrow else min(2.1, panels.width_of(names) + 0.12)
    count = 3 if narrow else max(4, -(-len(signals) // -(-len(signals) // COLUMNS)))
    block = head + row * len(names) + 0.12
    figure = blank(across, block * -(-len(signals) // count) + 0.05)
    width = (across - left) / count
    for number, (metric, found) in enumerate(signals):
        line, column = divmod(number, count)
        top = line * block + head
        place = (left + column * width, top, width * 0.92, row * len(names))
        axes = panels.place(figure, *place)
        _column(axes, study, metric, found, narrow, width)
        style: dict[str, Any] = {"fontsize": 7} if narrow else {"ha": "right", "va": "center"}
        for y, name in enumerate(names if column == 0 else ()):
            text = panels.shorten(name, 3.4 if narrow else left - 0.1, 7 if narrow else 8)
            at = (0, y + 0.22) if narrow else (-0.1 / (width * 0.92), y + 0.6)
            axes.text(*at, text, **style)
    return figure


def _column(
    axes: Axes, study: StudyRecord, metric: Metric, found: Lines, narrow: bool, width: float
) -> None:
    """One metric: every arm's curve in a row of its own, from 0 to 1 of the row's height."""
    shown, room = arms(study), 0.55 if narrow else 0.8
    known = [line for line in found.values() if line is not None]
    low, high = (end([end(line.mean) for line in known]) for end in (min, max))
    last = max(line.x[-1] for line in known)
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(shown), 0)

    def draw(line: Line, bottom: float, colour: str, width: float, alpha: float) -> None:
        shares = (line.mean - low) / ((high - low) or 1.0)
        style = {"color": colour, "linewidth": width, "alpha": alpha}
        axes.plot(0.72 * line.x / last, bottom - room * shares, **style)

    for number, arm in enumerate(shown):
        bottom = number + 0.94
        axes.plot([0, 0.72], [bottom, bottom], color=GRID, linewidth=0.6)
        kind = family(study.analysis, arm)
        control, own = found.get(study.control.slug), found[arm.slug]
        if control is not None and kind is not CONTROL:
            draw(control, bottom, MUTED, 0.8, 0.5)
        if own is not None:
            draw(own, bottom, kind.colour, 1.3, 1.0)
            style = {"fontsize": 6.5, "va": "center", "color": INK}
            axes.text(0.75, bottom - room / 2, brief(own.mean[-1]), **style)
    title = panels.shorten(metric.short, width, 7.5)
    axes.text(0, -0.62 if narrow else -0.85, title, fontweight="bold", fontsize=7.5)
    scale = f"{brief(low)} to {brief(high)}" + (" %" if metric.factor == 100 else "")
    axes.text(0, -0.18 if narrow else -0.2, scale, fontsize=6.5, color=MUTED)
