"""The map of what training changed in the weights: a panel for each run, layer by part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modicum.report.style import BROAD, INK, NARROW, SERIES, tip, wrapped
from modicum.report.weights import Anatomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_SHOWN = 6
NUMBERED_LAYERS = 14  # with more, the numbers in the cells would not fit
# Columns of the map outside of the layers: part -> (label, whether it comes before them).
OUTSIDE = {"embedding": ("emb", True), "final norm": ("norm", False), "head": ("head", False)}
DARKEST = 0.7  # the ink in a cell stays readable

Runs = Sequence[tuple[str, Anatomy | None]]


def drawable(runs: Runs) -> bool:
    """Whether any of the runs (label, what was measured) has a change to show."""
    return _largest(runs) > 0


def change_map(runs: Runs, narrow: bool = False) -> Figure:
    """The size of the change by layer and part, a panel for each of the first runs.

    The shade goes with the root of the relative change, on one scale for all panels; an
    empty cell did not change.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown, largest = _shown(runs), _largest(runs)
    heights = [0.27 * len(a.map) + 0.65 for _, a in shown]
    with rc_context({"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        width = NARROW if narrow else BROAD
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).ravel()
        for axes, (label, found) in zip(grid, shown, strict=True):
            _panel(axes, wrapped(label, width - 1), found, largest, numbered=not narrow)
        grid[-1].set_xlabel("layer")
    return figure


def percent(share: float) -> str:
    """A share in percent, with two digits or more: 97.4, 0.20, 0.0012."""
    value = 100 * share
    return f"{value:.1f}" if value >= 1 else f"{value:#.2g}"


def _shown(runs: Runs) -> list[tuple[str, Anatomy]]:
    return [(label, a) for label, a in runs if a is not None and a.map][:PANELS_SHOWN]


def _largest(runs: Runs) -> float:
    return max((value for _, a in _shown(runs) for value in _values(a)), default=0.0)


def _values(found: Anatomy) -> list[float]:
    outside = [found.parts[name].relative_norm for name in OUTSIDE if name in found.parts]
    inside = [value for row in found.map.values() for value in row]
    return [value for value in (*inside, *outside) if value]


def _panel(axes: Axes, label: str, found: Anatomy, largest: float, numbered: bool) -> None:
    count, rows = len(next(iter(found.map.values()))), list(found.map)
    numbered = numbered and count <= NUMBERED_LAYERS
    ticks = {float(n): str(n) for n in range(count) if count <= NUMBERED_LAYERS or n % 4 == 0}
    for number, part in enumerate(rows):
        for layer, value in enumerate(found.map[part]):
            where = f"layer {layer}, {part}"
            _cell(axes, (layer, number, 1), value, largest, numbered, where)
    left, right = 0.0, count - 1.0
    for part, (short, before) in OUTSIDE.items():
        if part in found.parts:
            if before:
                left = place = left - 1.4
            else:
                right = place = right + 1.4
            value = found.parts[part].relative_norm
            _cell(axes, (place, 0, len(rows)), value, largest, numbered, part)
            ticks[place] = short
    axes.set_xlim(left - 0.6, right + 0.6)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks(sorted(ticks), [ticks[place] for place in sorted(ticks)])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(label)


def _cell(
    axes: Axes,
    place: tuple[float, float, int],
    value: float | None,
    largest: float,
    text: bool,
    where: str,
) -> None:
    """One cell at (x, y, rows tall), with its value in percent if `text`."""
    from matplotlib.patches import Rectangle

    x, y, rows = place
    corner, high = (x - 0.46, y - 0.44), rows - 0.12
    axes.add_patch(Rectangle(corner, 0.92, high, fill=False, edgecolor=INK, linewidth=0.3))
    if value:
        alpha = DARKEST * math.sqrt(value / largest)
        cell = Rectangle(corner, 0.92, high, facecolor=SERIES[0], alpha=alpha, linewidth=0)
        tip(axes.add_patch(cell), f"{where}: {percent(value)} %")
        if text:
            middle = y + (rows - 1) / 2
            shown = axes.text(x, middle, percent(value), ha="center", va="center", fontsize=7)
            tip(shown, f"{where}: {percent(value)} %")
