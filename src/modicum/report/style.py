"""How figures look, their small panels, and the SVG text that they become; the same runs, the same bytes.

In a page every colour is a CSS variable with a default; a file has the plain colours. matplotlib is
imported only when a figure is drawn, and never its pyplot."""

import hashlib
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modicum.report.words import tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # names for annotations: figures take them from here
    Axes = Figure = object

# After Okabe and Ito: told apart by colour-blind readers too. Darker than theirs: each has a contrast
# of 3 with white and a lightness of its own (5 of L* apart), so that they differ in grey, too.
SERIES = ("#00407f", "#cc5200", "#00784f", "#8a2a6b", "#a97f00", "#4f9cc0")
# Colour is never alone: a series has a marker of its own, and beyond six a line style.
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES = ("-", "--", ":")
Look = tuple[str, str, str, str]  # name, colour, marker, line style
INK, MUTED, GRID, PAPER = "#24292e", "#5d656c", "#dfe3e6", "#ffffff"
LETTER = 0.62  # width of a letter of the figures' font, in its size
LINE = 0.17  # inches of a line of a legend
STYLE, PAPER_STYLE = (Path(__file__).with_name(f"{n}.mplstyle") for n in ("figures", "paper"))


def styled(further: Path | None = None) -> AbstractContextManager[None]:
    """Figures that are drawn and saved in it have the style of reports, `further` ones beside it."""
    from matplotlib import rc_context, rc_params_from_file

    changed = dict(rc_params_from_file(further, use_default_template=False)) if further else None
    return rc_context(changed, fname=STYLE)


def across(narrow: bool) -> float:
    """How many inches wide a figure is by the style in force: on a page, and on a phone."""
    from matplotlib import rcParams

    return rcParams["figure.figsize"][narrow]


def series(number: int) -> tuple[str, str, str]:
    """Colour, marker and line style of the series of that number, from 0."""
    kind = number % len(SERIES)
    return SERIES[kind], MARKERS[kind], STYLES[number // len(SERIES) % len(STYLES)]


def wrapped(text: str, inches: float) -> str:
    """A label in lines that fit a width at the size of figures: about 14 letters an inch."""
    return "\n".join(textwrap.wrap(text, max(8, int(14 * inches)), break_on_hyphens=False))


def blank(width: float, height: float, fitted: bool = False) -> Figure:
    """An empty figure of so many inches; `fitted` makes room for all words around its axes."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained" if fitted else None)


def tip(text: str) -> str:
    """The `gid` of a mark that has a text, which the page shows when the pointer is on it."""
    return f"tip:{text}"


def name(text: str) -> str:
    """The `gid` of a line (`Line2D`) with a name: the page reads its value under the pointer."""
    return f"line:{text}"


def legend(figure: Figure, looks: Iterable[Look], base: bool = False) -> None:
    """Above the panels, where the figure grows for further lines; `base` adds the dashed one."""
    from matplotlib.lines import Line2D

    shown = {
        text: Line2D([], [], color=colour, lw=1.7, ls=line, marker=marker, markersize=4.5)
        for text, colour, marker, line in looks
    }
    if base:
        shown["base, held out"] = Line2D([], [], color=INK, linewidth=0.9, dashes=(4, 3))
    # The handle takes half an inch; what does not fit goes to a further line.
    width, height = figure.get_size_inches()
    room = width - 0.6 if len(shown) <= 6 else min(width - 0.6, 2.2)
    names = [wrapped(label, room) for label in shown]
    lines = [label.split("\n") for label in names]
    letters = max(len(line) for label in lines for line in label) + 6
    columns = max(1, min(len(names), int(14 * width / letters)))
    tall = -(-len(names) // columns) * max(map(len, lines))
    figure.set_size_inches(width, height + LINE * (tall - 1))
    figure.legend(shown.values(), names, loc="outside upper left", ncols=columns)


class Drawn(NamedTuple):
    """A figure as drawn: two SVG elements for a page, an SVG and a PDF for files."""

    broad: str
    narrow: str
    svg: str
    pdf: bytes


def drawn(broad: Figure, narrow: Figure, label: str) -> Drawn:
    """A figure in all its forms; `label` says in words what it shows."""
    text = _text(broad)
    broad.set_layout_engine("none")  # fixed by that drawing
    page, phone = _finish(text, broad, label, True), _finish(_text(narrow), narrow, label, True)
    return Drawn(page, phone, svg(broad, label, text), pdf(broad))


def svg(figure: Figure, label: str, text: str = "") -> str:
    """The figure as the SVG of a file: plain colours, ids of its own."""
    return _finish(text or _text(figure), figure, label, False)


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF without a date, text as text."""
    return _saved(figure, "pdf", "CreationDate")


def _saved(figure: Figure, format: str, date: str) -> bytes:
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=format, metadata={date: None})
    return buffer.getvalue()


def _text(figure: Figure) -> str:
    text = _saved(figure, "svg", "Date").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text[text.index("<svg") :].strip()
    text = text.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    text = text.replace("xlink:href", "href")
    # A hundredth of a point is enough.
    text = re.sub(r'(?<= )(?:d|x|y)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"<g/>\s*", "", text))
    return re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", text)


def _finish(text: str, figure: Figure, label: str, page: bool) -> str:
    """With its words and ids of its own; on a `page` with variables for colours, and boxes."""
    text = re.sub(r'<g id="line:([^"]*)">', r'<g data-line="\1">' if page else "<g>", text)
    for number, axes in enumerate(figure.axes if page else (), start=1):
        # Where the axes lies in the figure (points, y down), its limits and its scales.
        (left, right), (low, high) = axes.get_position().intervalx, axes.get_position().intervaly
        width, height = 72 * figure.get_size_inches()
        sides = (left * width, right * width, (1 - low) * height, (1 - high) * height)
        numbers = " ".join(f"{v:.6g}" for v in (*sides, *axes.get_xlim(), *axes.get_ylim()))
        box = f'data-box="{numbers} {axes.get_xscale()} {axes.get_yscale()}"'
        text = text.replace(f'<g id="axes_{number}">', f'<g id="axes_{number}" {box}>')
    # Two figures in one page must not share ids: each gets its own prefix. Those that nothing
    # refers to are dropped.
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    prefix = "m" + hashlib.sha256(text.encode()).hexdigest()[:10] + "-"
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", text)
    fonts = "system-ui, sans-serif" if page else "'DejaVu Sans', sans-serif"
    # matplotlib writes the family alone or at the end of the whole font.
    text = re.sub(r"(font-family: |font: [^;\"]*?px )[^;\"]*", rf"\g<1>{fonts}", text)
    colours = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
    colours |= {colour: f"series-{number}" for number, colour in enumerate(SERIES)}
    for colour, variable in colours.items() if page else ():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    # Inside HTML an <svg> needs no namespace.
    text = text.replace(' xmlns="http://www.w3.org/2000/svg"', "") if page else text
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1) + "\n"


def shorten(text: str, inches: float, size: float = 8) -> str:
    """`text`, cut with an ellipsis where it would be wider than `inches` at `size` points."""
    room = max(4, int(72 * inches / (LETTER * size)))
    return text if len(text) <= room else text[: room - 1] + "…"


def width_of(texts: Sequence[str], size: float = 8) -> float:
    """About how wide the widest of `texts` is, in inches."""
    return max(map(len, texts), default=0) * LETTER * size / 72


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """An axes at inches from the left and from the top of the figure."""
    across, down = figure.get_figwidth(), figure.get_figheight()
    bottom = 1 - (top + height) / down
    return figure.add_axes((left / across, bottom, width / across, height / down))


def grid(
    titles: Sequence[str],
    narrow: bool,
    x_name: str,
    y_name: str,
    height: float = 1.05,
    margin: float = 0.52,
    columns: int = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure of one small panel for each title; only the outer ones have numbers, all one scale.

    `height` is a panel's, `margin` the room at the left, in inches; no `columns`: small multiples."""
    most = across(False) if columns else 2.6
    columns = columns or min(2 if narrow else 5, len(titles))
    lines = -(-len(titles) // columns)
    wide = across(narrow)
    top, gap_x, gap_y, bottom = 0.48, 0.16, 0.36, 0.45
    width = min(most, (wide - margin - 0.1 - gap_x * (columns - 1)) / columns)
    down = top + lines * height + (lines - 1) * gap_y + bottom
    figure = blank(wide, down)
    panels = []
    for number, title in enumerate(titles):
        line, column = divmod(number, columns)
        left, above = margin + column * (width + gap_x), top + line * (height + gap_y)
        axes = place(figure, left, above, width, height)
        axes.set_title(shorten(title, width), fontsize=8, pad=3)
        # The last of its column has the numbers, also where the last line is not full.
        outer = number + columns >= len(titles)
        axes.tick_params(labelleft=column == 0, labelbottom=outer, labelsize=7, pad=2)
        panels.append(axes)
    figure.text(margin / wide, 0.08 / down, x_name, color=MUTED, va="bottom")
    # Above, not turned at the side: a tall figure would have it far from what is seen.
    figure.text(0.02 / wide, 1 - 0.06 / down, y_name, color=MUTED, va="top")
    return figure, panels


def numbers(axes: Axes, axis: str, count: int = 4) -> None:
    """At most `count` round numbers on an axis, as 20k, 1.5M."""
    from matplotlib.ticker import MaxNLocator

    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10]))
    chosen.set_major_formatter(tick)


def remark(axes: Axes, text: str, y: float = 0.05) -> None:
    """A few words at the right of a panel, at its foot or so high, from 0 to 1."""
    axes.text(0.98, y, text, transform=axes.transAxes, ha="right", fontsize=7, color=MUTED)
