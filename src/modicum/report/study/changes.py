"""What training changed in the weights: a small map for each arm, one scale for all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modicum.report import weights
from modicum.report.frame import Cell, Table, table
from modicum.report.study import panels
from modicum.report.study.analysis import Arm
from modicum.report.study.families import family
from modicum.report.study.read import Study
from modicum.report.style import GRID, SERIES, tip
from modicum.report.weights import Anatomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADS = (
    "arm",
    "tensors",
    "entries (%)",
    "shown in bf16 (%)",
    "size (%)",
    "rank, attention",
    "rank, MLP",
)


def measured(study: Study) -> list[tuple[Arm, Anatomy]]:
    """The arms whose change was measured, the control first."""
    found = [(arm, study.curves.get(arm.slug)) for arm in study.analysis.arms]
    return [(a, c.anatomy) for a, c in found if c is not None and c.anatomy is not None]


def numbers(study: Study) -> Table:
    """How much changed in each arm, one seed of each."""
    rows = []
    for arm, found in measured(study):
        kind = family(study.analysis, arm)
        ranks = [found.parts.get(part) for part in ("attention", "mlp")]
        rows.append(
            [
                Cell(arm.name, series=kind.series, code=True),
                Cell(f"{found.tensors_changed} of {found.tensors}", found.tensors_changed),
                _share(found.changed.get("0")),
                _share(found.changed.get("bf16")),
                _share(found.relative_norm),
                *(_rank(part) for part in ranks),
            ]
        )
    return table("What training changed in the weights", HEADS, rows)


def _share(value: float | None) -> Cell:
    return Cell("—") if value is None else Cell(_percent(value), value)


def _rank(part: weights.Part | None) -> Cell:
    if part is None or part.effective_rank is None or part.rank_share is None:
        return Cell("—")
    text = f"{part.effective_rank:.1f} ({100 * part.rank_share:.0f} %)"
    return Cell(text, part.effective_rank)


def _percent(share: float) -> str:
    value = 100 * share
    return f"{value:.1f}" if value >= 1 or value == 0 else f"{value:#.2g}"


def drawable(study: Study) -> bool:
    """Whether any arm has a map of parts by layers with a change in it."""
    return any(value for _, found in measured(study) for row in found.map.values() for value in row)


def draw(study: Study, narrow: bool) -> Figure:
    """The figure: layers across, parts down; darker is more, as the root of the change."""
    shown = [(arm, found) for arm, found in measured(study) if found.map]
    parts = list(dict.fromkeys(part for _, found in shown for part in found.map))
    layers = max(len(row) for _, found in shown for row in found.map.values())
    largest = max(v for _, found in shown for row in found.map.values() for v in row if v)
    figure, grid = panels.grid(
        [arm.name for arm, _ in shown],
        narrow,
        "layer",
        f"change, share of the weights' norm; the darkest cell is {_percent(largest)} %",
        height=0.2 * len(parts),
        margin=0.75,
    )
    for axes, (arm, found) in zip(grid, shown, strict=True):
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.set_yticks(range(len(parts)), parts)
        step = max(1, layers // 6)
        axes.set_xticks(range(0, layers, step))
        for number, part in enumerate(parts):
            for layer, value in enumerate(found.map.get(part, ())):
                _cell(axes, layer, number, value, largest, f"{arm.name}, layer {layer}, {part}")
    return figure


def _cell(axes: Axes, x: int, y: int, value: float | None, largest: float, words: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (x - 0.46, y - 0.42)
    if not value:
        axes.add_patch(Rectangle(corner, 0.92, 0.84, fill=False, edgecolor=GRID, linewidth=0.5))
        return
    shade = 0.08 + 0.92 * math.sqrt(value / largest)
    cell = Rectangle(corner, 0.92, 0.84, facecolor=SERIES[0], alpha=shade, linewidth=0)
    axes.add_patch(cell)
    tip(cell, f"{words}: {_percent(value)} %")


def caption(study: Study) -> str:
    """What the figure shows and of which seeds."""
    seeds = {c.anatomy_seed for c in study.curves.values() if c.anatomy is not None}
    which = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed that finished"
    return (
        f"Norm of the change over the norm of the weights, by layer and part, {which} of each"
        " arm. Darker is more (as the root), one scale for all arms; an outlined cell did not"
        " change."
    )
