"""The comparison of runs as rows: for the terminal and for the report."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from modicum.report import document
from modicum.report import words as n
from modicum.report.document import Table, TableCell, sortable
from modicum.report.read import RunRecord, colours, labels
from modicum.results import RunResult

MISSING = {n.NONE, n.NONE + n.ARROW + n.NONE, f"{n.NONE} ({n.NONE})"}
LEAST = (3, 5, 6, 1, 7, 4)  # what a narrow terminal does without, first to last


class RunRow(NamedTuple):
    """One finished run; `label` is unique among the rows, `colour` numbers the update."""

    label: str
    colour: int
    result: RunResult
    record: RunRecord

    @property
    def share(self) -> float | None:
        """Trained parameters as a fraction of all."""
        trained, total = self.result.trainable_parameters, self.result.total_parameters
        return trained / total if trained is not None and total else None

    def mean(self, metric: str) -> float:
        """The mean of a metric over the steps that logged it; NaN where none did."""
        column = self.record.metrics.get(metric, np.empty(0))
        return float(np.nanmean(column)) if np.isfinite(column).any() else math.nan

    def scores(self, name: str) -> tuple[float, float]:
        """One number of the evaluations of the base and of the trained model, or NaN."""
        base, trained = self.result.base, self.result.trained
        return getattr(base, name, math.nan), getattr(trained, name, math.nan)


def results(records: Sequence[RunRecord]) -> list[RunRow]:
    """A row for each run that has a result, in the order given."""
    found = zip(records, labels(records), colours(records), strict=True)
    return [RunRow(name, colour, r.result, r) for r, name, colour in found if r.result is not None]


def table(rows: Sequence[RunRow]) -> Table:
    """The rows as a table of a report, sorted by values; a column that nobody has is left out."""
    columns = {"update": [TableCell(row.label, series=row.colour, code=True) for row in rows]}
    found = sortable("row.txt", rows, number=n.count)
    columns |= {head: cells for head, cells in found if {c.text for c in cells} - MISSING}
    return document.table("Results of the runs", list(columns), zip(*columns.values(), strict=True))


def rich_table(rows: Sequence[RunRow], width: int = 100) -> RichTable:
    """The rows as a table for a terminal; a narrow one has two lines a row, or fewer columns."""
    # What stands in brackets, or the second word, goes to the next line.
    columns = sortable("row.txt", rows, number=n.short)
    names = (re.sub(r" (?=\()|(?<=^\w{4}) |(?<=trained) ", "\n", head) for head, _ in columns)
    heads, cells = ["update", *names], ([cell.text for cell in found] for _, found in columns)
    texts = list(zip([row.label for row in rows], *cells, strict=True))
    if width < 100:
        heads = [head.removeprefix("sampled ") for head in heads]
        texts = [(t[0], *(re.sub(r" (?=[(\[])", "\n", x) for x in t[1:])) for t in texts]
    caption = "base → trained on held-out problems"
    return terminal_table(heads, texts, caption, least=[heads[k] for k in LEAST], width=width)


def terminal_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    wrap: bool = False,
    least: Sequence[str] = (),
    width: int = 100,
) -> RichTable:
    """For a terminal; `wrap` folds columns after the first, `least` go first where it is too wide."""
    columns = list(zip(heads, *rows, strict=True))
    for gone in least:
        first, *others = (max(len(s) for t in c for s in t.split("\n")) for c in columns)
        if min(first, 20) + sum(other + 2 for other in others) <= width - 3:
            break
        columns = [column for column in columns if column[0] != gone]
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=caption)
    table.caption_justify = "left"
    for number, (head, *texts) in enumerate(columns):
        side, kept = "right" if number else "left", number > 0 and not wrap
        least_wide = None if number else min([20, *map(len, texts)])
        table.add_column(head, justify=side, overflow="fold", no_wrap=kept, min_width=least_wide)
    for row in list(zip(*columns, strict=True))[1:]:
        # Text, not str: an expression with brackets is no markup.
        table.add_row(*map(Text, row))
    return table


def show(rows: Sequence[RunRow]) -> None:
    """Print the table to standard output."""
    terminal().print(rich_table(rows, terminal().width))


def terminal() -> Console:
    """Standard output, 100 columns wide where it is no terminal."""
    console = Console(highlight=False, markup=False)
    console.width = console.width if console.is_terminal else 100
    return console
