"""The comparison of runs as rows: for the terminal and for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modicum.report import frame
from modicum.report.frame import Cell, Table
from modicum.report.read import Result, RunRecord, colours, labels

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NONE = "—"
ARROW = " → "


@dataclass(frozen=True)
class Row:
    """One finished run.

    `label` is unique among the rows, `colour` numbers the update (seeds share it), and
    `sampling_seconds` and `training_seconds` are means over the steps, or None.
    """

    label: str
    colour: int
    result: Result
    sampling_seconds: float | None
    training_seconds: float | None

    @property
    def share(self) -> float | None:
        """Trained parameters as a fraction of all."""
        trained, total = self.result.trainable_parameters, self.result.total_parameters
        return trained / total if trained is not None and total else None


def results(records: Sequence[RunRecord]) -> list[Row]:
    """A row for each run that has a result, in the order given."""
    return [
        Row(
            label=label,
            colour=colour,
            result=record.result,
            sampling_seconds=_mean(record, "time/sampling_seconds"),
            training_seconds=_mean(record, "time/training_seconds"),
        )
        for record, label, colour in zip(records, labels(records), colours(records), strict=True)
        if record.result is not None
    ]


def percent(value: float | None, sign: str = "") -> str:
    """A fraction as percent with one decimal, or a dash."""
    return NONE if value is None or math.isnan(value) else f"{100 * value:.1f}{sign}"


def share(value: float | None) -> str:
    """The trained share of a model: 100%, 3.1%, 0.052%."""
    if value is None:
        return NONE
    if value == 1:
        return "100%"
    return f"{100 * value:.1f}%" if value >= 0.01 else f"{100 * value:.2g}%"


def count(value: float | None) -> str:
    """A whole number with thousands separated, or a dash."""
    return NONE if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """A large count in three digits or so: 494M, 14.9M, 550k."""
    if value is None:
        return NONE
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # From 999.5 of a unit on, three digits round to one of the next.
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}" if value < 999.5e9 else f"{value / 1e9:,.0f}B"
    return f"{value:.0f}"


def decimal(value: float | None) -> str:
    """A length or a time: two digits below 1, one decimal below 100, none above."""
    if value is None or math.isnan(value):
        return NONE
    if 0 < value < 0.95:
        return f"{value:#.2g}"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def memory(value: float | None) -> str:
    """Bytes as GiB or MiB."""
    if value is None:
        return NONE
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def change(row: Row, name: str, show: Callable[[float | None], str] = percent) -> str:
    """`base → trained` of one field of the evaluations; a dash where one is missing."""
    sides = (row.result.base, row.result.trained)
    return ARROW.join(show(None if side is None else getattr(side, name)) for side in sides)


def limits(row: Row) -> str:
    """`[low, high]` of the trained accuracy in percent, or nothing."""
    trained = row.result.trained
    if trained is None or trained.low is None or trained.high is None:
        return ""
    return f"[{percent(trained.low)}, {percent(trained.high)}]"


HEADS = (
    "update",
    "trained parameters",
    "sampled accuracy (%), 95% interval",
    "greedy (%)",
    "length (tokens)",
    "seconds",
    "peak memory",
)


def cells(row: Row, number: Callable[[float | None], str] = count) -> tuple[str, ...]:
    """The texts of a row, in the order of HEADS; `number` shows the parameters."""
    result = row.result
    return (
        row.label,
        f"{number(result.trainable_parameters)} ({share(row.share)})",
        f"{change(row, 'accuracy')} {limits(row)}".strip(),
        change(row, "greedy"),
        change(row, "length", decimal),
        decimal(result.seconds),
        memory(result.peak_memory_bytes),
    )


def rich_table(rows: Sequence[Row]) -> RichTable:
    """The rows as a table for a terminal of 100 columns."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="base → trained on held-out problems",
        caption_justify="left",
    )
    heads = (
        "update",
        "trained\nparameters",
        "sampled accuracy\n(%, 95% interval)",
        "greedy\n(%)",
        "length\n(tokens)",
        "seconds",
        "peak\nmemory",
    )
    for number, head in enumerate(heads):
        side = "right" if number else "left"
        table.add_column(head, justify=side, overflow="fold", no_wrap=number > 0)
    for row in rows:
        # Text, not str: an expression with brackets is no markup.
        table.add_row(*(Text(cell) for cell in cells(row, short)))
    return table


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table of a report, sorted by values; a column that nobody has is left out."""
    missing = {NONE, NONE + ARROW + NONE, f"{NONE} ({NONE})"}
    texts = [cells(row) for row in rows]
    shown = [n for n in range(1, len(HEADS)) if {line[n] for line in texts} - missing]
    lines = []
    for row, line in zip(rows, texts, strict=True):
        values = _values(row)
        first = Cell(line[0], series=row.colour, code=True)
        lines.append([first, *(Cell(line[n], values[n - 1]) for n in shown)])
    return frame.table("Results of the runs", [HEADS[0], *(HEADS[n] for n in shown)], lines)


def _values(row: Row) -> tuple[float | None, ...]:
    """What the columns after the first are sorted by: of base and trained, the trained."""
    result, trained = row.result, row.result.trained
    scores = (trained.accuracy, trained.greedy, trained.length) if trained else (None, None, None)
    return (result.trainable_parameters, *scores, result.seconds, result.peak_memory_bytes)


def _mean(record: RunRecord, name: str) -> float | None:
    column = record.metrics.get(name)
    if column is None or np.isnan(column).all():
        return None
    return float(np.nanmean(column))


def show(rows: Sequence[Row]) -> None:
    """Print the table to standard output, 100 columns wide where it is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=100)
    console.print(rich_table(rows))
