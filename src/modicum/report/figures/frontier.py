"""Accuracy against what an arm cost, with the frontier: arms that none beats in both."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from modicum.report import document
from modicum.report.figures import labels, panels
from modicum.report.numbers import decimal, mebibytes, memory, short, some
from modicum.report.study.families import family, present
from modicum.report.style import BROAD, INK, MUTED, NARROW, PAPER, Axes, Figure, blank, tip
from modicum.results import Analysis, ArmResult

SIZE = 7.5  # of a label, points


@dataclass(frozen=True)
class Axis:
    """A cost of a run or an arm: its name for files and in words, its number, how that is written."""

    name: str
    title: str
    value: Callable[[Any], float | None]
    text: Callable[[float | None], str]
    log: bool = False


AXES = (
    Axis("parameters", "trained parameters", lambda c: c.parameters, short, log=True),
    Axis("time", "training time (s)", lambda c: c.seconds, lambda v: f"{decimal(v)} s"),
    Axis(
        "memory",
        "peak memory above the start (MiB)",
        lambda c: mebibytes(c.memory_bytes),
        lambda v: memory(None if v is None else v * 2**20),
    ),
)


@dataclass(frozen=True)
class Point:
    """An arm with its cost, its accuracy in percent, and whether it is on the frontier."""

    arm: ArmResult
    x: float
    y: float
    best: bool = False


def figures(analysis: Analysis) -> list[document.Figure]:
    """A figure for each cost that two arms or more have."""
    made = []
    for axis in AXES:
        found = points(analysis, axis)
        if len(found) < 2:
            continue
        best = [f"{p.arm.name} ({axis.text(p.x)}, {p.y:.1f} %)" for p in found if p.best]
        made.append(
            document.Figure(
                f"accuracy-{axis.name}",
                f"{analysis.primary.capitalize()} against {axis.title}. On the frontier:"
                f" {some(best)}.",
                f"{analysis.primary.capitalize()} over seeds (with 95 % interval) against"
                f" {axis.title}{', on a logarithmic scale' if axis.log else ''}. The steps are"
                " the frontier: no cheaper arm reached as much (bold names; by the means, so two"
                " that differ by less than their intervals may change places).",
                partial(draw, analysis, axis),
            )
        )
    return made


def points(analysis: Analysis, axis: Axis) -> list[Point]:
    """The arms whose cost and accuracy are known, by rising cost.

    On the frontier is an arm (no placebo) that reaches more than every cheaper one.
    """
    known = [
        Point(arm, cost, 100 * arm.accuracy.mean)
        for arm in analysis.arms
        if arm.accuracy is not None
        and (cost := axis.value(arm.cost)) is not None
        and (cost > 0 or not axis.log)
    ]
    found, highest = [], float("-inf")
    for point in sorted(known, key=lambda p: (p.x, -p.y)):
        best = not point.arm.placebo and point.y > highest
        highest = max(highest, point.y) if best else highest
        found.append(Point(point.arm, point.x, point.y, best))
    return found


def draw(analysis: Analysis, axis: Axis, narrow: bool) -> Figure:
    """The figure: a mark for each arm with its name and interval, the frontier as steps."""
    across, down = (NARROW, 5.6) if narrow else (BROAD, 4.6)
    families = present(analysis)
    top = 0.12 + 0.19 * panels.legend_lines(families, 0.1, across) + 0.08
    figure = blank(across, down)
    left = 0.46
    axes = panels.place(figure, left, top, across - left - 0.12, down - top - 0.5)
    panels.legend(figure, families, 0.1, 0.06)
    found = points(analysis, axis)
    _limits(axes, analysis, axis, found)
    if best := [p for p in found if p.best]:
        xs, ys = [*(p.x for p in best), axes.get_xlim()[1]], [*(p.y for p in best), best[-1].y]
        axes.step(xs, ys, where="post", color=INK, linewidth=1.0, alpha=0.55, zorder=1.5)
    for point in found:
        if point.y < axes.get_ylim()[0]:
            continue
        _mark(axes, analysis, axis, point)
    _base(axes, analysis, found)
    _names(axes, [p for p in found if p.y >= axes.get_ylim()[0]], narrow)
    axes.set_xlabel(axis.title)
    axes.set_ylabel(f"{analysis.primary}, {analysis.split} problems (%)", labelpad=2)
    return figure


def _limits(axes: Axes, analysis: Analysis, axis: Axis, found: Sequence[Point]) -> None:
    low, high = min(p.x for p in found), max(p.x for p in found)
    if axis.log:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.set_xlim(low / 1.8, high * 1.8)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: axis.text(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.12 * (high - low) or 0.1 * high or 1.0
        axes.set_xlim(max(0.0, low - room), high + room)
        panels.numbers(axes, "x", 6)
    panels.numbers(axes, "y", 8)
    axes.tick_params(labelsize=7)
    # Placebos and the base are far below: they must not press all others together.
    ends = [100 * end for p in found if not p.arm.placebo for end in _ends(p.arm)]
    ends = ends or [100 * end for p in found for end in _ends(p.arm)]
    room = 0.08 * (max(ends) - min(ends)) or 1.0
    bottom, top = min(ends) - room, max(ends) + room
    base = [] if analysis.base is None else [100 * analysis.base.mean]
    reached = [v for v in base if v > bottom - 4 * room]
    axes.set_ylim(max(-2.0, min([bottom, *(v - room for v in reached)])), min(102.0, top))


def _base(axes: Axes, analysis: Analysis, found: Sequence[Point]) -> None:
    """The base as a line, or what lies below the axis in words."""
    below = [f"{p.arm.name} {p.y:.1f} %" for p in found if p.y < axes.get_ylim()[0]]
    if analysis.base is not None:
        base = 100 * analysis.base.mean
        if base < axes.get_ylim()[0]:
            below.insert(0, f"base {base:.1f} %")
        else:
            where = axes.get_yaxis_transform()
            axes.axhline(base, color=MUTED, linewidth=0.9, dashes=(4, 3), zorder=1)
            axes.text(0.995, base, "base", transform=where, ha="right", va="bottom", color=MUTED)
    if below:
        text = "below the axis: " + ", ".join(below)
        room = axes.get_position().width * (NARROW if len(below) > 3 else BROAD)
        style: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "color": MUTED}
        axes.text(0.995, 0.015, panels.shorten(text, room, SIZE), fontsize=SIZE, **style)


def _ends(arm: ArmResult) -> tuple[float, float]:
    return (0.0, 0.0) if arm.accuracy is None else (arm.accuracy.low, arm.accuracy.high)


def _mark(axes: Axes, analysis: Analysis, axis: Axis, point: Point) -> None:
    kind = family(analysis, point.arm)
    low, high = (100 * end for end in _ends(point.arm))
    axes.vlines(point.x, low, high, color=kind.colour, linewidth=1.0, alpha=0.6, zorder=2)
    style: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.8}
    size = 10 if kind.marker == "*" else 6.5
    (mark,) = axes.plot(
        point.x, point.y, kind.marker, color=kind.colour, markersize=size, zorder=3, **style
    )
    tip(mark, f"{point.arm.name}: {point.y:.1f} %, {axis.text(point.x)}")


def _names(axes: Axes, found: Sequence[Point], narrow: bool) -> None:
    """The arms' names, those on the frontier in bold, clear of marks, intervals and steps."""
    size = SIZE - 0.5 if narrow else SIZE
    texts = [panels.shorten(p.arm.name, 1.5 if narrow else 2.6, size) for p in found]
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = axes.transData + figure.dpi_scale_trans.inverted()

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = inches.transform((x, y))
        return float(across), float(up)

    box = axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    places = [at(p.x, p.y) for p in found]
    taken = []
    for point in found:
        (x, low), (_, high) = (at(point.x, 100 * end) for end in _ends(point.arm))
        taken.append(labels.Box(x - 0.03, low, x + 0.03, high))
    best = [place for place, point in zip(places, found, strict=True) if point.best]
    for (x, y), (after, _) in itertools.pairwise([*best, (box.x1, 0.0)]):
        taken.append(labels.Box(x, y - 0.02, after, y + 0.02))
    bounds = labels.Box(box.x0, box.y0 + 0.15, box.x1, box.y1)
    sizes = [(panels.width_of([text], size) + 0.04, 1.25 * size / 72) for text in texts]
    back = inches.inverted()
    chosen = labels.arrange(places, sizes, bounds, taken)
    for label, text, point, (x, y) in zip(chosen, texts, found, places, strict=True):
        if label.needs_line:
            near = min(max(x, label.box.left), label.box.right)
            level = min(max(y, label.box.bottom + 0.02), label.box.top - 0.02)
            (x1, y1), (x2, y2) = back.transform([(x, y), (near, level)])
            axes.plot([x1, x2], [y1, y2], color=MUTED, linewidth=0.5, alpha=0.8, zorder=1.8)
        # The page's font is narrower than assumed: a text ends or begins at its point.
        side = "right" if label.box.right < x else "left" if label.box.left > x else "center"
        edge = {"right": label.box.right - 0.02, "left": label.box.left + 0.02}
        start, middle = back.transform(
            (edge.get(side, (label.box.left + label.box.right) / 2), label.y)
        )
        weight = "bold" if point.best else "normal"
        style: dict[str, Any] = {"ha": side, "va": "center", "fontweight": weight}
        axes.text(start, middle, text, fontsize=size, zorder=5, **style)
