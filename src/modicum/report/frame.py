"""The frame of every report: a self-contained page, its figures, tables and Markdown.

A page is one HTML file. Its policy lets nothing be loaded and only its own script run, which
is named by its SHA-256; all that the script does is sort tables and show values under the
pointer, so the page is whole without it. What a model wrote is escaped text.

A `Table` and a `Figure` are made once and shown in both forms: HTML by the macros of
`macros.html`, Markdown by the functions here.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from modicum.report.style import STYLE, forms, pdf, svg
from modicum.types import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

# Everything of ASCII and Latin-1 control but tab and line end, and lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
MARKED = re.compile(r"([\\`*_\[<>|&#~$])")

COLUMNS_SHOWN = 4  # runs side by side; more are rows


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn: `draw(narrow)` gives it for a page or for a phone.

    `name` is its file's name (a-z, 0-9, -), `label` says in words what it shows, for those
    who do not see it, and `caption` stands below it.
    """

    name: str
    label: str
    caption: str
    draw: Callable[[bool], Drawing]


@dataclass(frozen=True)
class Drawn:
    """A figure as drawn: two SVG elements for a page, an SVG and a PDF for files."""

    name: str
    label: str
    caption: str
    broad: Markup
    narrow: Markup
    svg: str
    pdf: bytes


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `value` is what a column is sorted by where the text will not do.

    `series` shows the colour of that number before the text, `code` shows it as code.
    """

    text: str
    value: float | None = None
    series: int | None = None
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table: its name for those who do not see it, heads and rows; the first cell heads a row.

    `wrap` lets the cells of other columns than the first have several lines.
    """

    name: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = True
    wrap: bool = False


@dataclass(frozen=True)
class Places:
    """Where a report goes: the page, the Markdown beside it, the folder of its figures."""

    page: Path
    markdown: Path
    figures: Path


def places(folder: Path, out: str | Path | None) -> Places:
    """FOLDER/{report.html, report.md, figures/}, or OUT.html, OUT.md and OUT-figures/.

    Raises UserError for a Markdown file as `out`: it is the name of the page.
    """
    if out is None:
        return Places(folder / "report.html", folder / "report.md", folder / "figures")
    page = Path(out)
    if page.suffix == ".md":
        raise UserError(f"--out names the page, {page.stem}.html say; {page} is written beside it")
    return Places(page, page.with_suffix(".md"), page.with_name(f"{page.stem}-figures"))


def table(
    name: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell | str]],
    sortable: bool = True,
    wrap: bool = False,
) -> Table:
    """A Table of cells and plain texts; rows must be as long as `heads`."""
    cells = tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    assert all(len(row) == len(heads) for row in cells), name
    return Table(name, tuple(heads), cells, sortable and len(cells) > 1, wrap)


def across(
    name: str, measures: Sequence[tuple[str, Sequence[str]]], names: Sequence[str]
) -> Table | None:
    """Measures (name, a text for each run) as a table: few runs are columns, many are rows."""
    if not measures or not names:
        return None
    if len(names) <= COLUMNS_SHOWN:
        rows = [[measure, *texts] for measure, texts in measures]
        return table(name, ["", *names], rows, sortable=False)
    heads = ["run", *(measure for measure, _ in measures)]
    texts = zip(*(texts for _, texts in measures), strict=True)
    return table(name, heads, [[n, *t] for n, t in zip(names, texts, strict=True)])


def render(template: str, **values: Any) -> str:
    """The page of a template, a file of this package that extends `base.html`.

    `values` must hold `title`; those that the template uses and nobody gave are an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    script = _file("page.js").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        css=Markup(_file("page.css").strip()),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **values,
    )


def draw(figures: Iterable[Figure]) -> tuple[Drawn, ...]:
    """Every figure in its four forms."""
    return tuple(_draw(figure) for figure in figures)


def save_figures(figures: Iterable[Drawn], folder: str | Path) -> list[Path]:
    """Write NAME.svg and NAME.pdf of every figure into `folder`, which is made if need be.

    Raises UserError where the folder cannot be written.
    """
    folder, written = Path(folder), list[Path]()
    for figure in figures:
        write(folder / f"{figure.name}.svg", figure.svg)
        write(folder / f"{figure.name}.pdf", figure.pdf)
        written += [folder / f"{figure.name}.svg", folder / f"{figure.name}.pdf"]
    return written


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, making its folder; UserError where that cannot be done."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path


def printable(text: str, limit: int | None = None) -> str:
    """`text` with control characters replaced; beyond `limit` letters it says how many more."""
    text = UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more letters)"


# Markdown --------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """`text` as one line of Markdown that shows it as it is."""
    return MARKED.sub(r"\\\1", " ".join(printable(text).split()))


def code(text: str) -> str:
    """`text` as inline code, in a cell of a table too."""
    text = " ".join(printable(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def block(text: str, language: str = "text") -> str:
    """`text` as a fenced block that nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{printable(text)}\n{fence}\n"


def markdown_table(found: Table) -> str:
    """A Table as Markdown, ending in a line end."""
    heads = [escaped(head) or " " for head in found.heads]
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)]]
    for row in found.rows:
        lines.append([code(c.text) if c.code else escaped(c.text) for c in row])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown_figure(figure: Figure | Drawn, folder: str) -> str:
    """A figure that lies in `folder` (relative to the Markdown file), and its caption."""
    place = f"{folder}/{figure.name}"
    image = f"![{escaped(figure.label)}](<{place}.svg>)"
    return f"{image}\n\n{escaped(figure.caption)} ([SVG](<{place}.svg>), [PDF](<{place}.pdf>))\n"


def number(value: float) -> str:
    """A number for a text about a figure: three digits or so, thousands separated."""
    if math.isnan(value):
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _draw(figure: Figure) -> Drawn:
    from matplotlib import rc_context

    with rc_context(STYLE):
        broad, narrow = figure.draw(False), figure.draw(True)
    page, file = forms(broad, figure.label)
    return Drawn(
        name=figure.name,
        label=figure.label,
        caption=figure.caption,
        broad=_inline(page),
        narrow=_inline(svg(narrow, figure.label)),
        svg=file,
        pdf=pdf(broad),
    )


def _inline(text: str) -> Markup:
    # Inside HTML an <svg> needs no namespace. Our own figure, its texts escaped by matplotlib.
    return Markup(text.replace(' xmlns="http://www.w3.org/2000/svg"', ""))


def _file(name: str) -> str:
    place = importlib.resources.files("modicum.report").joinpath(name)
    return place.read_text(encoding="utf-8")
