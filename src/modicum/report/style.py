"""How figures look, and the SVG text that they become.

The text stays text and every colour is a CSS variable with a default, so that a figure
follows the page's light or dark scheme and still stands alone. The same runs give the
same bytes. matplotlib is imported only when a figure is drawn, and never its pyplot.
"""

from __future__ import annotations

import hashlib
import io
import re
from html import escape
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by colour-blind readers too.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
Style = Literal["-", "--", ":"]
STYLES: tuple[Style, ...] = ("-", "--", ":")
INK, MUTED, GRID = "#24292e", "#6a7178", "#dfe3e6"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "modicum",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


def svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element with ids of its own and colours as variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :].strip()
    text = text.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    text = text.replace("xlink:href", "href")
    # Two figures in one page must not share ids: each gets its own prefix.
    prefix = "m" + hashlib.sha256(text.encode()).hexdigest()[:10] + "-"
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    variables = {INK: "ink", MUTED: "muted", GRID: "grid", "#ffffff": "paper"}
    variables |= {colour: f"series-{number}" for number, colour in enumerate(SERIES)}
    for colour, name in variables.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1) + "\n"
