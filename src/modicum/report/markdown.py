"""Any document as Markdown, with links to its figures; nothing in it can break out."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from modicum.report import document
from modicum.report.document import LETTERS_SHOWN, Document, Piece, TableCell, marked
from modicum.report.html import printable

SPECIAL = re.compile(r"([\\`*_\[<>|&#~$])")


def render(found: Document, figures: str) -> str:
    """The whole text; `figures` is the folder of the figures, relative to it."""
    parts = [f"# {escaped(found.title)}\n"]
    if found.headline:
        parts.append(f"**{prose(found.headline)}**\n")
    parts += [f"{prose(text)}\n" for text in (found.conclusion, *found.notes) if text]
    for section in found.sections:
        parts += [f"## {section.title}\n", *_blocks(section.blocks, figures, section.title)]
    return "\n".join(parts)


def escaped(text: str) -> str:
    """`text` as one line of Markdown that shows it as it is."""
    return SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))


def code(text: str) -> str:
    """`text` as inline code, in a cell of a table too."""
    text = " ".join(printable(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def block(text: str, language: str = "text") -> str:
    """`text` as a fenced block that nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{printable(text)}\n{fence}\n"


def prose(text: str) -> str:
    """A sentence as Markdown: what stands in backticks is code, all else as it is."""
    return "".join(code(piece) if is_code else _keep(piece) for is_code, piece in marked(text))


def table(found: document.Table) -> str:
    """A table, ending in a line end."""
    heads = [escaped(head) or " " for head in found.heads]
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)]]
    for row in found.rows:
        lines.append([code(c.text) if c.code else escaped(c.text) for c in row])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _keep(text: str) -> str:
    """Escaped, with the spaces at its ends: pieces of a sentence are joined again."""
    start = " " if text[:1].isspace() else ""
    end = " " if text[-1:].isspace() and text.strip() else ""
    return f"{start}{escaped(text)}{end}"


def _blocks(blocks: Iterable[Piece], figures: str, title: str) -> Iterator[str]:
    """The texts of blocks under a title, which a table of the same name does not repeat."""
    for found in blocks:
        name = getattr(found, "name", "")
        yield from WRITERS[type(found)](found, figures, "" if name == title else name)
        yield from _blocks(getattr(found, "parts", ()), figures, title)
        title = name if type(found) is document.Heading else title


def _named(text: str, name: str) -> list[str]:
    return [f"{escaped(name)}:\n\n{text}" if name else text]


def _values(found: document.Values, _: str, name: str) -> list[str]:
    rows = [(TableCell(k, code=True), TableCell(v, code=True)) for k, v in found.values.items()]
    return _named(table(document.table(name, ("setting", "value"), rows)), name)


def _proofs(found: document.Proofs, _: str, name: str) -> list[str]:
    lines = [f"- {code(run)}: {escaped(text)}\n" for run, text in found.items]
    return _named("".join(lines), name)


def _figure(found: document.Figure, folder: str, _: str) -> list[str]:
    place = f"{folder}/{found.name}"
    image = f"![{escaped(found.label)}](<{place}.svg>)\n"
    return [image, f"{escaped(found.caption)} ([SVG](<{place}.svg>), [PDF](<{place}.pdf>))\n"]


def _side_by_side(found: document.SideBySide, _: str, __: str) -> Iterator[str]:
    gold = f" ({escaped(found.gold)})" if found.gold else ""
    yield f"### {escaped(printable(found.title, LETTERS_SHOWN))}{gold}\n"
    for column in found.columns:
        for sample in column.samples:
            words = ", ".join(escaped(text) for text in (sample.question, sample.about) if text)
            text = block(printable(sample.completion, LETTERS_SHOWN))
            yield f"{code(column.name)}{', ' * bool(words)}{words}:\n\n{text}"


# Of each kind of block: (block, folder of the figures, its name unless a heading says it).
WRITERS: dict[type, Callable[[Any, str, str], Iterable[str]]] = {
    document.Text: lambda found, _, __: [f"{prose(found.text)}\n"],
    document.Heading: lambda found, _, __: [f"### {escaped(found.name)}\n"],
    document.Bullets: lambda found, _, __: ["".join(f"- {prose(t)}\n" for t in found.texts)],
    document.Values: _values,
    document.Proofs: _proofs,
    document.Commands: lambda found, _, __: [block("\n".join(found.lines), "sh")],
    document.SideBySide: _side_by_side,
    document.Table: lambda found, _, name: _named(table(found), name),
    document.Figure: _figure,
    document.Folded: lambda found, _, __: [],
}
