"""What training changed in the weights of runs: the map, layer by part, and the numbers.

The numbers are those of modicum.anatomy, explained in docs/anatomy.md.
"""

import math
from collections.abc import Sequence

from modicum.report import document
from modicum.report.numbers import NONE, small_percent
from modicum.report.style import BROAD, INK, NARROW, SERIES, Axes, Figure, blank, tip, wrapped
from modicum.results import Anatomy, AnatomyPart

PANELS_SHOWN = 6
NUMBERED_LAYERS = 14  # with more, the numbers in the cells would not fit
# Columns of the map outside of the layers: part -> (label, whether it comes before them).
OUTSIDE = {"embedding": ("emb", True), "final norm": ("norm", False), "head": ("head", False)}
DARKEST = 0.7  # the ink in a cell stays readable

Runs = Sequence[tuple[str, Anatomy | None]]


def figure(runs: Runs) -> document.Figure | None:
    """The map, where any of the runs (label, what was measured) has a change to show."""
    if not _largest(runs) > 0:
        return None
    names = ", ".join(label for label, _ in runs[:PANELS_SHOWN])
    return document.Figure(
        "changes",
        f"Size of the change in every layer and part of the weights: {names}",
        "Size of the change over the size of the weights (%), by layer and part. Darker is"
        " more (as the root), on one scale for all runs; an empty cell did not change.",
        lambda narrow: change_map(runs, narrow),
    )


def change_map(runs: Runs, narrow: bool = False) -> Figure:
    """The size of the change by layer and part, a panel for each of the first runs.

    The shade goes with the root of the relative change, on one scale for all panels; an
    empty cell did not change.
    """
    from matplotlib import rc_context

    shown, largest = _shown(runs), _largest(runs)
    heights = [0.27 * len(a.map) + 0.65 for _, a in shown]
    with rc_context({"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        width = NARROW if narrow else BROAD
        figure = blank(width, sum(heights), fitted=True)
        grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).ravel()
        for axes, (label, found) in zip(grid, shown, strict=True):
            _panel(axes, wrapped(label, width - 1), found, largest, numbered=not narrow)
        grid[-1].set_xlabel("layer")
    return figure


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
        tip(axes.add_patch(cell), f"{where}: {small_percent(value)} %")
        if text:
            middle = y + (rows - 1) / 2
            shown = axes.text(x, middle, small_percent(value), ha="center", va="center", fontsize=7)
            tip(shown, f"{where}: {small_percent(value)} %")


def measures(found: Sequence[Anatomy | None]) -> list[tuple[str, list[str]]]:
    """Name -> a text for each run; nothing when no run was measured."""
    known = [a for a in found if a is not None]
    rows = [
        ("Tensors changed", [f"{a.tensors_changed} of {a.tensors}" if a else NONE for a in found])
    ]
    for key in known[0].changed if known else ():
        if key != "bf16":
            name = "at all" if key == "0" else f"by more than {key}"
            rows.append((f"Entries changed {name} (%)", [_share(a, key) for a in found]))
    rows += [
        ("Entries changed that bf16 shows (%)", [_share(a, "bf16") for a in found]),
        ("The same, within changed tensors (%)", [_share(a, "bf16", within=True) for a in found]),
        (
            "Size of the change, of the weights' norm (%)",
            [NONE if a is None else small_percent(a.relative_norm) for a in found],
        ),
    ]
    for part in dict.fromkeys(name for a in known for name in a.parts):
        texts = [rank(a.parts.get(part)) if a else NONE for a in found]
        if set(texts) != {NONE}:
            rows.append((f"Effective rank, {part} (of full rank)", texts))
    return rows if known else []


def _share(found: Anatomy | None, key: str, within: bool = False) -> str:
    share = None if found is None else found.changed.get(key)
    if found is None or share is None or (within and not found.entries_in_changed):
        return NONE
    return small_percent(share * (found.entries / found.entries_in_changed if within else 1))


def rank(part: AnatomyPart | None, space: str = "") -> str:
    """The effective rank of a part's change and its share of full rank."""
    if part is None or part.effective_rank is None or part.rank_share is None:
        return NONE
    return f"{part.effective_rank:.1f} ({100 * part.rank_share:.0f}{space}%)"
