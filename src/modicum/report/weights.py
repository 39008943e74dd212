"""What a run's training did to the weights, as `result.json` has it: the texts and the map.

The numbers are those of modicum.anatomy, explained in docs/anatomy.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modicum.report.style import INK, SERIES, STYLE, svg
from modicum.spec import check

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NONE = "—"
PANELS_SHOWN = 6
NUMBERED_LAYERS = 14  # with more, the numbers in the cells would not fit
# Columns of the map outside of the layers: part -> (label, whether it comes before them).
OUTSIDE = {"embedding": ("emb", True), "final norm": ("norm", False), "head": ("head", False)}
DARKEST = 0.7  # the ink in a cell stays readable


@dataclass(frozen=True)
class Part:
    """One part of the model (attention, mlp, ...); None where a number does not exist."""

    relative_norm: float | None
    effective_rank: float | None
    rank_share: float | None


@dataclass(frozen=True)
class Anatomy:
    """What changed in the weights; shares are fractions of all entries."""

    dtype: str
    tensors: int
    tensors_changed: int
    entries: int
    entries_in_changed: int
    changed: Mapping[str, float]
    """By threshold, and `bf16`."""
    relative_norm: float | None
    parts: Mapping[str, Part]
    map: Mapping[str, tuple[float | None, ...]]
    """Part -> the relative norm of its change in every layer."""


def parse(data: Mapping[str, Any], where: str) -> Anatomy:
    """The anatomy from an object of JSON; what is missing or of a wrong type is a UserError."""
    number = float | None
    parts = {name: check(f"{where}: {name}", p, dict) for name, p in _table(data, "parts", where)}
    names = ("tensors", "tensors_changed", "entries", "entries_in_changed")
    return Anatomy(
        dtype=check(f"{where}: 'dtype'", data.get("dtype"), str),
        **{name: check(f"{where}: {name!r}", data.get(name), int) for name in names},
        changed={k: check(f"{where}: {k!r}", v, float) for k, v in _table(data, "changed", where)},
        relative_norm=check(f"{where}: 'relative_norm'", data.get("relative_norm"), number),
        parts={
            name: Part(
                *(
                    check(f"{where}: {name}: {key!r}", part.get(key), number)
                    for key in ("relative_norm", "effective_rank", "rank_share")
                )
            )
            for name, part in parts.items()
        },
        map={
            k: check(f"{where}: map: {k}", v, tuple[number, ...])
            for k, v in _table(data, "map", where)
        },
    )


def _table(data: Mapping[str, Any], name: str, where: str) -> list[tuple[str, Any]]:
    return list(check(f"{where}: {name!r}", data.get(name), dict).items())


def measures(found: Sequence[Anatomy | None]) -> list[tuple[str, list[str]]]:
    """Name -> a text for each run; nothing when no run was measured."""
    known = [a for a in found if a is not None]
    if not known:
        return []
    rows: list[tuple[str, list[str]]] = [
        ("Tensors changed", [f"{a.tensors_changed} of {a.tensors}" if a else NONE for a in found])
    ]
    for key in known[0].changed:
        if key != "bf16":
            name = "at all" if key == "0" else f"by more than {key}"
            rows.append((f"Entries changed {name} (%)", [_share(a, key) for a in found]))
    rows.append(("Entries changed that bf16 shows (%)", [_share(a, "bf16") for a in found]))
    rows.append(
        ("The same, within changed tensors (%)", [_share(a, "bf16", within=True) for a in found])
    )
    rows.append(
        (
            "Size of the change, of the weights' norm (%)",
            [NONE if a is None else _percent(a.relative_norm) for a in found],
        )
    )
    for part in dict.fromkeys(name for a in known for name in a.parts):
        texts = [_rank(a.parts.get(part)) if a else NONE for a in found]
        if set(texts) != {NONE}:
            rows.append((f"Effective rank, {part} (of full rank)", texts))
    return rows


def _share(found: Anatomy | None, key: str, within: bool = False) -> str:
    if found is None:
        return NONE
    share = found.changed.get(key)
    if share is None or (within and not found.entries_in_changed):
        return NONE
    return _percent(share * (found.entries / found.entries_in_changed if within else 1))


def _percent(share: float | None) -> str:
    """A share in percent, with two digits or more: 97.4, 0.20, 0.0012."""
    if share is None:
        return NONE
    value = 100 * share
    return f"{value:.1f}" if value >= 1 else f"{value:#.2g}"


def _rank(part: Part | None) -> str:
    if part is None or part.effective_rank is None or part.rank_share is None:
        return NONE
    return f"{part.effective_rank:.1f} ({100 * part.rank_share:.0f}%)"


def change_map(runs: Sequence[tuple[str, Anatomy | None]], width: float = 9.6) -> str:
    """The size of the change by layer and part, a panel for each run, as one SVG, or "".

    `runs` are labels with what was measured. The shade goes with the root of the relative
    change, on one scale for all panels; an empty cell did not change. `width` is in inches
    (4.2 suits a phone).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = [(label, a) for label, a in runs if a is not None and a.map][:PANELS_SHOWN]
    largest = max((value for _, a in shown for value in _values(a)), default=0.0)
    if not largest:
        return ""
    heights = [0.27 * len(a.map) + 0.6 for _, a in shown]
    settings = STYLE | {"font.size": 8, "axes.titlesize": 9, "axes.grid": False}
    with rc_context(settings | {"axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).ravel()
        for axes, (label, found) in zip(grid, shown, strict=True):
            _panel(axes, label, found, largest, numbered=width > 6)
        grid[-1].set_xlabel("layer")
        names = ", ".join(label for label, _ in shown)
        return svg(figure, f"Size of the change in every layer and part of the weights: {names}")


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
            _cell(axes, layer, number, 1, value, largest, numbered)
    left, right = 0.0, count - 1.0
    for part, (short, before) in OUTSIDE.items():
        if part in found.parts:
            if before:
                left = place = left - 1.4
            else:
                right = place = right + 1.4
            _cell(axes, place, 0, len(rows), found.parts[part].relative_norm, largest, numbered)
            ticks[place] = short
    axes.set_xlim(left - 0.6, right + 0.6)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks(sorted(ticks), [ticks[place] for place in sorted(ticks)])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(label)


def _cell(
    axes: Axes, x: float, y: float, height: int, value: float | None, largest: float, text: bool
) -> None:
    """One cell, `height` rows tall, with its value in percent if `text`."""
    from matplotlib.patches import Rectangle

    corner, high = (x - 0.46, y - 0.44), height - 0.12
    axes.add_patch(Rectangle(corner, 0.92, high, fill=False, edgecolor=INK, linewidth=0.3))
    if value:
        alpha = DARKEST * math.sqrt(value / largest)
        axes.add_patch(Rectangle(corner, 0.92, high, facecolor=SERIES[0], alpha=alpha, linewidth=0))
        if text:
            middle = y + (height - 1) / 2
            axes.text(x, middle, _percent(value), ha="center", va="center", fontsize=7)
