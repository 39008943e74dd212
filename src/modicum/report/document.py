"""A report as data: sections of blocks, which a `Builder` collects and `page` renders.

A text may hold `code` in backticks. What a model wrote stands in `Sample`s alone."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from modicum.config import TrainConfig
from modicum.report.style import Figure as Drawing
from modicum.report.words import NONE, filled, known, printable, say, setting
from modicum.runs import flat
from modicum.settings import settings
from modicum.types import Frozen

LETTERS_SHOWN = 1500  # of a question, a completion, a setting
COLUMNS_SHOWN = 4  # runs side by side; more are rows
LETTERS_BROWSED = 300_000  # of completions that a page can show
T = TypeVar("T", bound="Piece")
# By problem: texts, each a `completion` with its verdicts, `strict` and `lenient`.
Texts = Mapping[str, Any]
Draw = Callable[[bool], Drawing]
Measures = Sequence[tuple[str, Sequence[str]]]  # name -> a text for each run


class Piece(Frozen):
    """A block of a section; some hold further ones, as `parts`."""


class Text(Piece):
    """A paragraph; a note is set smaller."""

    text: str
    note: bool = False


class Heading(Piece):
    """A heading within a section."""

    name: str


class Bullets(Piece):
    """A list of texts."""

    texts: tuple[str, ...]


class Values(Piece):
    """Settings: name -> value, under a name of their own unless it is empty."""

    name: str
    values: Mapping[str, str]


class Proofs(Piece):
    """What was proven of each run: (name, text)."""

    name: str
    items: tuple[tuple[str, str], ...]


class Commands(Piece):
    """Lines for a shell."""

    lines: tuple[str, ...]


class Sample(NamedTuple):
    """A completion, a line about it, and its question where the title does not say it."""

    completion: str
    about: str
    question: str = ""
    gold: str = ""


class Written(NamedTuple):
    """What one model wrote: its name, the number of its colour (None: no series), completions."""

    name: str
    series: int | None
    samples: tuple[Sample, ...]


class SideBySide(Piece):
    """Completions side by side, under a title: a question with its answer, or a run."""

    title: str
    columns: tuple[Written, ...]
    gold: str = ""
    series: int | None = None


class TableCell(NamedTuple):
    """A cell: its text (as `code`), what it is sorted by otherwise, the number of its colour."""

    text: str
    value: float | None = None
    series: int | None = None
    code: bool = False


Cells = Sequence[TableCell | str]


class Table(Piece):
    """A table: its name for those who do not see it, heads and rows; the first cell heads a row.

    `wrap` lets other cells have several lines; `plain` keeps the heads of rows light."""

    name: str
    heads: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    sortable: bool = True
    wrap: bool = False
    plain: bool = False


class Figure(Piece):
    """What `draw(narrow)` draws for a page or a phone; `label` says in words what it shows."""

    name: str
    label: str
    caption: str
    draw: Draw


class Browsed(Piece):
    """Completions on many problems: a page shows one at a time, without its script the first ones."""

    problems: tuple[SideBySide, ...]


class Folded(Piece):
    """Blocks behind a line that unfolds them."""

    summary: str
    parts: tuple[Piece, ...]


class Section(NamedTuple):
    """A section of a report."""

    id: str
    title: str
    blocks: tuple[Piece, ...]


class Document(NamedTuple):
    """A report: its title, the answer in a sentence, what it says of it, notes, sections."""

    title: str
    headline: str
    conclusion: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    data: tuple[Path, ...] = ()  # files that it is made of

    def blocks(self, kind: type[T]) -> list[T]:
        """Its blocks of a kind in order, the folded ones too."""
        blocks = (block for section in self.sections for block in section.blocks)
        parts = (part for block in blocks for part in getattr(block, "parts", (block,)))
        return [part for part in parts if isinstance(part, kind)]


def browsed(
    problems: Iterable[tuple[str, str, str]], sides: Sequence[tuple[str, int | None, Texts]]
) -> Browsed | None:
    """What each side (name, number of its colour, texts) wrote on each problem (key, question, gold).

    The problems end where the page would grow too large; None without any."""
    found, letters, about = [], 0, partial(say, "verdict")
    for key, question, gold in problems:
        written = tuple(
            Written(name, series, tuple(Sample(t.completion, about(of=t)) for t in texts[key]))
            for name, series, texts in sides
            if key in texts
        )
        letters += sum(len(s.completion[:LETTERS_SHOWN]) for one in written for s in one.samples)
        if found and letters > LETTERS_BROWSED:
            break
        found.append(SideBySide(question, written, gold))
    return Browsed(tuple(found)) if found else None


def proofs(name: str, items: Iterable[tuple[str, str | None]]) -> Proofs | None:
    """What was proven of each run or arm; None where nothing was."""
    proven = tuple((run, proof) for run, proof in items if proof)
    return Proofs(name, proven) if proven else None


def figure(text: str, draw: Draw, name: str | None = None, **values: Any) -> Figure:
    """A figure with the words of that section of `words.txt`, by which it is named as well."""
    return Figure(name or text, say(text, 0, **values), say(text, 1, **values), draw)


def table(name: str, heads: Sequence[str], rows: Iterable[Cells], **options: Any) -> Table:
    """A Table of cells and plain texts; rows must be as long as `heads`."""
    cells = tuple(tuple(TableCell(c) if isinstance(c, str) else c for c in row) for row in rows)
    assert all(len(row) == len(heads) for row in cells), name
    options["sortable"] = options.get("sortable", True) and len(cells) > 1
    return Table(name, tuple(heads), cells, **options)


def measured(template: str, runs: Sequence[Any], **values: Any) -> list[tuple[str, list[str]]]:
    """The rows `name | text` that a template makes `of` each run: name -> a text for each."""
    texts = [filled(template, of=run, **values).splitlines() for run in runs]
    rows = ([line.split(" | ", 1) for line in lines] for lines in zip(*texts, strict=True))
    return [(row[0][0], [text for _, text in row]) for row in rows]


def sortable(
    template: str, runs: Sequence[Any], **values: Any
) -> list[tuple[str, list[TableCell]]]:
    """The rows `name | text | number` of a template: name -> a cell for each run, with its number."""
    rows = []
    for name, texts in measured(template, runs, **values):
        pairs = [(text, json.loads(number)) for text, number in (t.rsplit(" | ", 1) for t in texts)]
        rows.append((name, [TableCell(text, v if known(v) else None) for text, v in pairs]))
    return rows


def across(
    name: str, measures: Measures, names: Sequence[str | TableCell], what: str = "run", **how: Any
) -> Table | None:
    """Measures (name, a text for each run) as a table: few runs are columns, many are rows."""
    if not measures or not names:
        return None
    if len(names) <= COLUMNS_SHOWN:
        heads = ["", *(n if isinstance(n, str) else n.text for n in names)]
        rows = [[measure, *texts] for measure, texts in measures]
        return table(name, heads, rows, sortable=False, plain=True, **how)
    lines = zip(names, *(texts for _, texts in measures), strict=True)
    return table(name, [what, *(measure for measure, _ in measures)], lines, plain=True, **how)


class Builder:
    """Collects blocks by section, in order; a block that is None is left out."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, list[Piece]]] = []

    def section(self, id: str, title: str, *blocks: Piece | None) -> None:
        """A new section, where blocks go from now on."""
        self.found.append((id, title, []))
        self.add(*blocks)

    def add(self, *blocks: Piece | None) -> None:
        """Further blocks of the section."""
        self.found[-1][2].extend(block for block in blocks if block is not None)

    def note(self, name: str, **values: Any) -> None:
        """A text of `words.txt`, set smaller."""
        self.add(Text(say(name, **values), note=True))

    def fold(self, summary: str, block: Piece | None, note: str = "") -> None:
        """A block behind a line, with a text of `words.txt`."""
        notes = (Text(say(note), note=True),) if note else ()
        self.add(Folded(summary, (block, *notes)) if block else None)

    def values(self, name: str, values: Mapping[str, Any], usual: bool = False) -> None:
        """Settings under a name, tables within them flat; those that are `usual` folded."""
        every = flattened(values)
        default = flattened({n: v for n, _, v in settings(TrainConfig())}) if usual else {}
        own = {n: v for n, v in every.items() if default.get(n) != v}
        self.add(Values(name, own) if own else None)
        rest = {n: v for n, v in every.items() if n not in own}
        self.fold(f"{len(rest)} more, as by default", Values("", rest) if rest else None)

    def repeat(self, lines: Sequence[str]) -> None:
        """The commands that make it again."""
        self.section("repeat", "How to repeat it")
        if lines:
            self.add(Commands(tuple(lines)))
            self.note("same_seed")

    def sections(self) -> tuple[Section, ...]:
        """Those that have blocks."""
        return tuple(Section(id, title, tuple(found)) for id, title, found in self.found if found)


def compare(configs: Sequence[Any]) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Settings that all share (name -> value) and those that differ (name -> one for each)."""
    flat = [flattened(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config)
    values = {name: tuple(config.get(name, NONE) for config in flat) for name in names}
    different = {name: texts for name, texts in values.items() if len(set(texts)) > 1}
    return {name: values[name][0] for name in names if name not in different}, different


def flattened(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings as texts, tables within them flat; what is None is left out."""
    pairs = [(name, setting(name, value)) for name, value in flat(config) if value is not None]
    return {printable(name): printable(text, LETTERS_SHOWN) for name, text in pairs}
