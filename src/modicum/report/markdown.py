"""Any document as Markdown, with links to its figures; nothing in it can break out.

`page.md` has a macro for each kind of block.
"""

import re

from modicum.report import words
from modicum.report.document import Document
from modicum.report.words import marked, printable

SPECIAL = re.compile(r"([\\`*_\[<>|&#~$])")


def render(document: Document, figures: str) -> str:
    """The whole text; `figures` is the folder of the figures, relative to it."""
    template = words.environment(escaped=escaped, code=code, fenced=block, prose=prose)
    text = template.get_template("page.md").render(document=document, folder=figures)
    return text.strip("\n") + "\n"


def escaped(text: str) -> str:
    """`text` as one line of Markdown that shows it as it is."""
    return _shown(text).strip()


def code(text: str) -> str:
    """`text` as inline code, in a cell of a table too."""
    text = " ".join(printable(text).split()).replace("|", "\\|")
    fence = "`" * (1 + _ticks(text))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def block(text: str, language: str = "text") -> str:
    """`text` as a fenced block that nothing in it can end."""
    fence = "`" * max(3, 1 + _ticks(text))
    return f"{fence}{language}\n{printable(text)}\n{fence}"


def prose(text: str) -> str:
    """A sentence as Markdown: what stands in backticks is code, all else as it is."""
    return "".join(code(piece) if is_code else _shown(piece) for is_code, piece in marked(text))


def _shown(text: str) -> str:
    return SPECIAL.sub(r"\\\1", re.sub(r"\s+", " ", printable(text)))


def _ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
