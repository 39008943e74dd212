"""The templates of reports: the page, the Markdown, and the prose of `words.txt`.

Each section of `words.txt` is one text, filled with values by name; the one of a figure has its
text alternative, a line ---, and its caption. A text may end its lines anywhere.
"""

import importlib.resources
import re
from functools import cache
from typing import Any

import jinja2

from modicum.report import numbers

# Everything of ASCII and Latin-1 control but tab and line end, and lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def say(name: str, part: int = 0, **values: Any) -> str:
    """The text of a section of `words.txt`, its line ends as spaces; `part` 1 is a caption."""
    return on_one_line(_texts()[name][part].render(values))


def on_one_line(text: str) -> str:
    """`text` with its line ends as spaces, a space at a time."""
    return re.sub(r"[ \n]+", " ", text).strip()


def printable(text: str, limit: int | None = None) -> str:
    """`text` with control characters replaced; beyond `limit` letters it says how many more."""
    text = UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more letters)"


def marked(text: str) -> list[tuple[bool, str]]:
    """`text` cut at its backticks: (whether it is code, piece)."""
    pieces = re.split("`([^`]*)`", text)
    return [(number % 2 == 1, piece) for number, piece in enumerate(pieces) if piece]


def environment(**filters: Any) -> jinja2.Environment:
    """Templates of this folder; only those of HTML escape what they are given."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(file),
        autoescape=lambda name: bool(name) and str(name).endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= vars(numbers) | {"printable": printable, "marked": marked} | filters
    made.filters["kind"] = lambda block: type(block).__name__
    return made


def file(name: str) -> str:
    """The text of a file of this folder."""
    return importlib.resources.files("modicum.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _texts() -> dict[str, list[jinja2.Template]]:
    parts = re.split(r"^== (\w+)\n", file("words.txt"), flags=re.MULTILINE)[1:]
    made = environment()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: [made.from_string(t) for t in text.split("\n---\n")] for name, text in pairs}
