"""Accuracy against what a run or an arm cost, with the frontier: those that none beats in both."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modicum.report import document, style
from modicum.report.study.read import family, looks
from modicum.report.style import INK, MUTED, PAPER, Axes, Figure, across, blank, tip
from modicum.report.tables import RunRow
from modicum.report.words import decimal, listed, memory, short
from modicum.results import Analysis, ArmCost
from modicum.stats import Interval

ROUNDS = 8  # of `arrange`
APART = 1.5
DISTANCES = (0.09, 0.16, 0.26, 0.4, 0.58, 0.8)  # of a label from its point
LINE_FROM = 0.2  # a label farther off than this needs a line to its point
Boxes = NDArray[np.float64]  # in inches: left, bottom, right, top
Pairs = Sequence[tuple[float, float]]
SIZE = 7.5  # of a label, points


class Axis(NamedTuple):
    """A cost of a run or an arm: its name for files and in words, its number, how that is written."""

    name: str
    title: str
    value: Callable[[Any], float | None]
    text: Callable[[float | None], str]
    log: bool = False
    unit: float = 1.0  # what is drawn as 1


MIB = 2.0**20
AXES = (
    Axis("parameters", "trained parameters", lambda c: c.parameters, short, log=True),
    Axis("time", "training time (s)", lambda c: c.seconds, lambda v: f"{decimal(v)} s"),
    Axis("memory", "peak memory above the start (MiB)", lambda c: c.memory_bytes, memory, unit=MIB),
)
OF_RUNS = (AXES[0], AXES[2]._replace(title="peak memory (MiB)"), AXES[1])


class FrontierPoint(NamedTuple):
    """A run or an arm: its look, its accuracy as a fraction (no limits: NaN), and what it cost."""

    name: str
    colour: str
    marker: str
    accuracy: Interval
    cost: Any
    placebo: bool = False
    x: float = 0.0  # that cost on an axis, and as it is written
    text: str = ""
    best: bool = False  # whether it is on the frontier

    @property
    def y(self) -> float:
        """The accuracy in percent."""
        return 100 * self.accuracy.mean

    @property
    def ends(self) -> tuple[float, float]:
        """Its interval in percent, or its accuracy twice."""
        low, high = 100 * self.accuracy.low, 100 * self.accuracy.high
        return (self.y, self.y) if math.isnan(low + high) else (low, high)


def of_arms(analysis: Analysis) -> list[FrontierPoint]:
    """The arms that have an accuracy."""
    return [
        FrontierPoint(arm.name, kind.colour, kind.marker, arm.accuracy, arm.cost, arm.placebo)
        for arm in analysis.arms
        if arm.accuracy is not None and (kind := family(analysis, arm))
    ]


def figures(analysis: Analysis) -> list[document.Figure]:
    """A figure for each cost that two arms or more have."""
    scored, made = of_arms(analysis), []
    for axis in AXES:
        found = points(scored, axis)
        if len(found) > 1:
            best = [f"{p.name} ({p.text}, {p.y:.1f} %)" for p in found if p.best]
            name, draw = f"accuracy-{axis.name}", partial(_draw, analysis, axis, found)
            values = {"axis": axis, "best": best, "primary": analysis.primary.capitalize()}
            made.append(document.figure("frontier", draw, name, **values))
    return made


def figure(rows: Sequence[RunRow]) -> document.Figure | None:
    """The accuracy of runs against each cost, where there are runs to compare."""
    scored = []
    for row, r in ((row, row.result) for row in rows if row.result.trained is not None):
        band = (row.scores(name)[1] for name in ("accuracy", "low", "high"))
        cost = ArmCost(r.trainable_parameters, seconds=r.seconds, memory_bytes=r.peak_memory_bytes)
        look = style.series(row.colour)[:2]
        scored.append(FrontierPoint(row.label, *look, Interval(*band), cost))
    costs = {a: found for a in OF_RUNS if len(found := points(scored, a)) > 1}
    if not costs:
        return None

    def draw(narrow: bool) -> Figure:
        lines, columns = (len(costs), 1) if narrow else (1, len(costs))
        made = blank(across(narrow), 2.3 * lines + 0.4 if narrow else 3.1, fitted=True)
        grid = made.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes, (axis, found) in zip(grid, costs.items(), strict=True):
            _panel(axes, axis, found, None)
            axes.set_xlabel(axis.title)
            axes.set_ylabel("held-out accuracy (%)" if narrow or axes is grid[0] else "")
        shown = {row.result.update: row.colour for row in rows}
        style.legend(made, [(name, *style.series(n)[:2], "") for name, n in shown.items()])
        return made

    steps = any(point.best for found in costs.values() for point in found)
    titles = listed([axis.title for axis in costs])
    return document.figure("cost", draw, titles=titles, steps=steps)


def points(scored: Sequence[FrontierPoint], axis: Axis) -> list[FrontierPoint]:
    """Those whose cost is known, by it; the best (no placebo) reach more than every cheaper one.

    None is best where there are fewer than three costs, or all are within `APART` of the least."""
    costs = ((found, axis.value(found.cost)) for found in scored)
    known = ((p, cost) for p, cost in costs if cost is not None and (cost > 0 or not axis.log))
    placed = [p._replace(x=cost / axis.unit, text=axis.text(cost)) for p, cost in known]
    made, highest = [], -math.inf
    costs = [found.x for found in placed if not found.placebo]
    # Two points, or costs that are nearly the same, have no frontier that is worth a line.
    apart = len(costs) > 2 and max(costs) >= APART * min(costs)
    for found in sorted(placed, key=lambda p: (p.x, -p.y)):
        best = apart and not found.placebo and found.y > highest
        highest = found.y if best else highest
        made.append(found._replace(best=best))
    return made


def _draw(analysis: Analysis, axis: Axis, found: Sequence[FrontierPoint], narrow: bool) -> Figure:
    figure = blank(across(narrow), 5.6 if narrow else 4.6, fitted=True)
    axes = figure.subplots()
    style.legend(figure, looks(analysis))
    _panel(axes, axis, found, None if analysis.base is None else 100 * analysis.base.mean)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(axis.title)
    axes.set_ylabel(f"{analysis.primary}, {analysis.split} problems (%)", labelpad=2)
    # Names go where there is room, so that all else must be in its place.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _names(axes, [p for p in found if p.y >= axes.get_ylim()[0]], narrow)
    return figure


def _panel(axes: Axes, axis: Axis, found: Sequence[FrontierPoint], base: float | None) -> None:
    from matplotlib.ticker import LogLocator

    low, high = found[0].x, found[-1].x
    if axis.log:
        axes.set(xscale="log", xlim=(low / 1.8, high * 1.8))
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: axis.text(value))
        axes.xaxis.set_minor_formatter("")
    else:
        room = 0.12 * (high - low) or 0.1 * high or 1.0
        axes.set_xlim(max(0.0, low - room), high + room)
        style.numbers(axes, "x", 6)
    style.numbers(axes, "y", 8)
    # Placebos and the base are far below: they must not press all others together.
    rivals = [p for p in found if not p.placebo] or found
    ends = [end for p in rivals for end in p.ends]
    room = 0.08 * (max(ends) - min(ends)) or 1.0
    bottom = min(ends) - room
    if base is not None and base > bottom - 4 * room:
        bottom = min(bottom, base - room)
    bottom = max(-2.0, bottom)
    axes.set_ylim(bottom, min(102.0, max(ends) + room))
    if best := [p for p in found if p.best]:
        xs, ys = [*(p.x for p in best), axes.get_xlim()[1]], [*(p.y for p in best), best[-1].y]
        axes.step(xs, ys, where="post", color=INK, linewidth=1.0, alpha=0.55, zorder=1.5)
    below = [f"{p.name} {p.y:.1f} %" for p in found if p.y < bottom]
    for point in (p for p in found if p.y >= bottom):
        look: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.8, "zorder": 3}
        look |= {"color": point.colour, "markersize": 10 if point.marker == "*" else 6.5}
        axes.vlines(point.x, *point.ends, color=point.colour, linewidth=1, alpha=0.6, zorder=2)
        words = f"{point.text} {axis.title.partition(' (')[0]}"
        look["gid"] = tip(f"{point.name}: {point.y:.1f} %, {words}")
        axes.plot(point.x, point.y, point.marker, **look)
    if base is not None and base >= bottom:
        where = axes.get_yaxis_transform()
        axes.axhline(base, color=MUTED, linewidth=0.9, dashes=(4, 3), zorder=1)
        axes.text(0.995, base, "base", transform=where, ha="right", va="bottom", color=MUTED)
    elif base is not None:
        below.insert(0, f"base {base:.1f} %")
    if below:
        text = "below the axis: " + ", ".join(below)
        room = axes.get_position().width * across(len(below) > 3)
        look = {"transform": axes.transAxes, "ha": "right", "color": MUTED}
        axes.text(0.995, 0.015, style.shorten(text, room, SIZE), fontsize=SIZE, **look)


def _names(axes: Axes, found: Sequence[FrontierPoint], narrow: bool) -> None:
    """Their names, those on the frontier in bold, clear of marks, intervals and steps."""
    size = SIZE - 0.5 if narrow else SIZE
    texts = [style.shorten(p.name, 1.5 if narrow else 2.6, size) for p in found]
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = axes.transData + figure.dpi_scale_trans.inverted()
    box = axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    places: Pairs = [tuple(inches.transform((p.x, p.y))) for p in found]
    taken = []
    for point, (x, _) in zip(found, places, strict=True):
        low, high = (inches.transform((point.x, end))[1] for end in point.ends)
        taken.append((x - 0.03, low, x + 0.03, high))
    best = [place for place, point in zip(places, found, strict=True) if point.best]
    for (x, y), (after, _) in itertools.pairwise([*best, (box.x1, 0.0)]):
        taken.append((x, y - 0.02, after, y + 0.02))
    bounds = (box.x0, box.y0 + 0.15, box.x1, box.y1)
    sizes = [(style.width_of([text], size) + 0.04, 1.25 * size / 72) for text in texts]
    chosen, far = arrange(places, sizes, bounds, taken)
    data = inches.inverted()
    for box, line, text, point, at in zip(chosen, far, texts, found, places, strict=True):
        if line:
            near = np.clip(at, np.add(box[:2], (0, 0.02)), np.subtract(box[2:], (0, 0.02)))
            xs, ys = data.transform(np.array([at, near])).T
            axes.plot(xs, ys, color=MUTED, linewidth=0.5, alpha=0.8, zorder=1.8)
        # The page's font is narrower than assumed: a text ends or begins at its point.
        right = box[0] + box[2] > 2 * at[0]
        side, x = ("left", box[0] + 0.02) if right else ("right", box[2] - 0.02)
        look = {"ha": side, "va": "center", "fontweight": "bold" if point.best else "normal"}
        start, level = data.transform((x, (box[1] + box[3]) / 2))
        axes.text(start, level, text, fontsize=size, zorder=5, **look)


def overlap(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """[A, B] square inches that each of A boxes [A, 4] shares with each of B [B, 4]."""
    one, two = np.reshape(boxes, (-1, 1, 4)), np.reshape(others, (1, -1, 4))
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    return np.clip(sides, 0, None).prod(-1)


def arrange(
    points: Pairs, sizes: Pairs, bounds: Sequence[float], obstacles: Sequence[Sequence[float]] = ()
) -> tuple[Boxes, list[bool]]:
    """A box for the label (width, height) of every point, and whether it needs a line to it.

    Greedy with repair: the most crowded first, then each anew where it costs least, `ROUNDS` in all.
    `obstacles` are kept clear where possible."""
    distances, angles = np.meshgrid(DISTANCES, np.radians(np.arange(0, 360, 15)), indexing="ij")
    steps, across, up = distances.ravel(), np.cos(angles).ravel(), np.sin(angles).ravel()
    # To the right is where a reader looks first, above next.
    taste = 1.2 * steps + 0.02 * (1 - across) + 0.01 * (1 - up)
    at = np.array(points)
    fixed = np.array([*np.hstack([at - 0.06, at + 0.06]), *obstacles])
    choices, costs = [], []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        # The label's nearest edge or corner lies at that distance.
        left = x + steps * across - width * (1 - across) / 2
        bottom = y + steps * up - height / 2 * (1 - up)
        boxes = np.stack([left, bottom, left + width, bottom + height], axis=1)
        outside = np.maximum(0, np.subtract(bounds, boxes) * (1, 1, -1, -1)).sum(1)
        choices.append(boxes)
        costs.append(taste + 60 * outside + 40 * overlap(boxes, fixed).sum(1))
    crowd = (np.hypot(*(at[:, None] - at).T) < 0.8).sum(0)
    chosen: dict[int, int] = {}
    for i in ROUNDS * sorted(range(len(points)), key=lambda i: (-crowd[i], points[i])):
        others = [choices[j][place] for j, place in chosen.items() if j != i]
        chosen[i] = int(np.argmin(costs[i] + 60 * overlap(choices[i], others).sum(1)))
    found = [chosen[i] for i in range(len(points))]
    boxes = np.array([choices[i][place] for i, place in enumerate(found)])
    return boxes, [bool(steps[place] > LINE_FROM) for place in found]
