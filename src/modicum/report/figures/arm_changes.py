"""What training changed in the weights: a small map for each arm, one scale for all."""

import math

from modicum.report import document
from modicum.report.document import Table, TableCell
from modicum.report.figures import panels
from modicum.report.figures.changes import rank
from modicum.report.numbers import small_percent, some
from modicum.report.study.families import family
from modicum.report.study.read import StudyRecord
from modicum.report.style import GRID, SERIES, Axes, Figure, tip
from modicum.results import Anatomy, AnatomyPart, ArmResult

HEADS = (
    "arm",
    "tensors",
    "entries (%)",
    "shown in bf16 (%)",
    "size (%)",
    "rank, attention",
    "rank, MLP",
)


def measured(study: StudyRecord) -> list[tuple[ArmResult, Anatomy]]:
    """The arms whose change was measured, the control first."""
    found = [(arm, study.curves.get(arm.slug)) for arm in study.analysis.arms]
    return [(a, c.anatomy) for a, c in found if c is not None and c.anatomy is not None]


def figure(study: StudyRecord) -> document.Figure | None:
    """The maps, where any arm has a change of parts by layers."""
    found = measured(study)
    if not any(value for _, anatomy in found for row in anatomy.map.values() for value in row):
        return None
    sizes = [
        f"{arm.name} {100 * anatomy.relative_norm:.2g} %"
        for arm, anatomy in found
        if anatomy.relative_norm is not None
    ]
    seeds = {anatomy.seed for _, anatomy in found}
    which = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed that finished"
    return document.Figure(
        "changes",
        "Size of the change in every layer and part of the weights. Over all weights:"
        f" {some(sizes)}.",
        f"Norm of the change over the norm of the weights, by layer and part, {which} of each"
        " arm. Darker is more (as the root), one scale for all arms; an outlined cell did not"
        " change.",
        lambda narrow: draw(study, narrow),
    )


def table(study: StudyRecord) -> Table | None:
    """How much changed in each arm, one seed of each."""
    found = measured(study)
    rows = [
        [
            TableCell(arm.name, series=family(study.analysis, arm).series, code=True),
            TableCell(f"{a.tensors_changed} of {a.tensors}", a.tensors_changed),
            *(
                TableCell(small_percent(share), share)
                for share in (a.changed.get("0"), a.changed.get("bf16"), a.relative_norm)
            ),
            *(
                TableCell(rank(a.parts.get(p), " "), a.parts.get(p, AnatomyPart()).effective_rank)
                for p in ("attention", "mlp")
            ),
        ]
        for arm, a in found
    ]
    name = "What training changed in the weights"
    return document.table(name, HEADS, rows, plain=True) if found else None


def draw(study: StudyRecord, narrow: bool) -> Figure:
    """The figure: layers across, parts down; darker is more, as the root of the change."""
    shown = [(arm, found) for arm, found in measured(study) if found.map]
    parts = list(dict.fromkeys(part for _, found in shown for part in found.map))
    layers = max(len(row) for _, found in shown for row in found.map.values())
    largest = max(v for _, found in shown for row in found.map.values() for v in row if v)
    figure, grid = panels.grid(
        [arm.name for arm, _ in shown],
        narrow,
        "layer",
        f"change, share of the weights' norm; the darkest cell is {small_percent(largest)} %",
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
    tip(cell, f"{words}: {small_percent(value)} %")
