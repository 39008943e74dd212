"""What training changed in the weights (docs/anatomy.md): maps, layer by part, and the numbers."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

from modicum.report import document, style
from modicum.report.style import GRID, MUTED, SERIES, Figure, tip
from modicum.report.words import NONE, small_percent
from modicum.results import Anatomy

WIDE = 6  # maps that are as wide as the page, with numbers in their cells; more are small
NUMBERED_LAYERS = 14  # with more, the numbers in the cells would not fit
# Columns of a wide map outside of the layers: part -> (label, whether it comes before them).
OUTSIDE = {"embedding": ("emb", True), "final norm": ("norm", False), "head": ("head", False)}

WHERE_KNOWN = ("Effective rank", "Participation ratio", "Alarm")  # rows of `measures`

Runs = Sequence[tuple[str, Anatomy | None]]
Cell = tuple[float, int, int, float | None, str]  # x, y, rows tall, value, what it is


def figure(runs: Runs, which: str = "") -> document.Figure | None:
    """The maps, where any of the runs (label, what was measured) has a change to show."""
    shown = [(label, found) for label, found in runs if found is not None and found.map]
    cells = (cell for _, found in shown for cell in _cells(found, list(found.map), True))
    if not any(value for *_, value, _ in cells):
        return None
    sizes = [f"{label} {small_percent(found.relative_norm)} %" for label, found in shown]
    return document.figure("changes", partial(_draw, shown), sizes=sizes, which=which)


def _cells(found: Anatomy, parts: Sequence[str], wide: bool) -> Iterator[Cell]:
    """The cells of a map: parts of layers, in a wide one beside them what lies outside."""
    count = len(next(iter(found.map.values())))
    for part, values in found.map.items():
        row = parts.index(part)
        yield from ((x, row, 1, value, f"layer {x}, {part}") for x, value in enumerate(values))
    left, right = 0.0, count - 1.0
    for part in (part for part in OUTSIDE if wide and part in found.parts):
        before = OUTSIDE[part][1]
        left, right = (left - 1.4, right) if before else (left, right + 1.4)
        yield left if before else right, 0, len(parts), found.parts[part].relative_norm, part


def _draw(runs: Sequence[tuple[str, Anatomy]], narrow: bool) -> Figure:
    """A map a run: layers across, parts down; darker is more, as the root of the change."""
    from matplotlib.patches import Rectangle

    wide = len(runs) <= WIDE
    parts = list(dict.fromkeys(part for _, found in runs for part in found.map))
    maps = [(label, list(_cells(found, parts, wide))) for label, found in runs]
    layers = max(len(row) for _, found in runs for row in found.map.values())
    largest = max(value for _, cells in maps for *_, value, _ in cells if value)
    numbered = wide and not narrow and layers <= NUMBERED_LAYERS
    titles, height = [label for label, _ in runs], (0.27 if wide else 0.2) * len(parts)
    what = f"change, share of the weights' norm; the darkest cell is {small_percent(largest)} %"
    figure, grid = style.grid(titles, narrow, "layer", what, height, margin=0.75, columns=int(wide))
    for axes, (label, cells) in zip(grid, maps, strict=True):
        axes.grid(False)
        axes.spines[:].set_visible(False)
        places = [x for _, cells in maps for x, *_ in cells]
        axes.set(xlim=(min(places) - 0.6, max(places) + 0.6), ylim=(len(parts) - 0.5, -0.5))
        axes.set_yticks(range(len(parts)), parts)
        ticks = {float(n): str(n) for n in range(0, layers, 1 if numbered else max(1, layers // 6))}
        ticks |= {x: OUTSIDE[words][0] for x, *_, words in cells if words in OUTSIDE}
        axes.set_xticks(list(ticks), list(ticks.values()))
        for x, y, tall, value, words in cells:
            cell = Rectangle((x - 0.46, y - 0.42), 0.92, tall - 0.16, facecolor="none")
            cell.set(edgecolor=MUTED if wide else GRID, linewidth=0.4)
            axes.add_patch(cell)
            if value:
                # The ink of a number stays readable.
                shade = (0.7 if numbered else 1.0) * (0.08 + 0.92 * math.sqrt(value / largest))
                text = tip(f"{label}, {words}: {small_percent(value)} %")
                cell.set(facecolor=SERIES[0], alpha=shade, linewidth=0, gid=text)
            if value and numbered:
                look = {"ha": "center", "va": "center", "fontsize": 7}
                axes.text(x, y + (tall - 1) / 2, small_percent(value), **look)
    return figure


def measures(found: Sequence[Anatomy | None], few: bool = False) -> list[tuple[str, list[str]]]:
    """Name -> a text for each run; nothing when no run was measured. Of `few` the main ones."""
    known = [a for a in found if a is not None]
    if not known:
        return []
    rows = document.measured("anatomy.txt", found, known=known, few=few)
    return [row for row in rows if set(row[1]) != {NONE} or not row[0].startswith(WHERE_KNOWN)]
