"""Where a report goes, and its files: page, Markdown, figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modicum.disk import make_folder
from modicum.report import html, markdown
from modicum.report.document import Document, Figure
from modicum.report.style import STYLE, Drawn, drawn
from modicum.types import UserError


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


def draw(figures: Iterable[Figure]) -> dict[str, Drawn]:
    """Every figure in its forms, by name."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return {f.name: drawn(f.draw(False), f.draw(True), f.label) for f in figures}


def write(document: Document, to: Places) -> Path:
    """Write the page, NAME.svg and NAME.pdf of every figure, and the Markdown.

    Raises UserError where that cannot be done.
    """
    found = draw(document.figures())
    _write(to.page, html.render(document, found).encode())
    for name, figure in found.items():
        _write(to.figures / f"{name}.svg", figure.svg.encode())
        _write(to.figures / f"{name}.pdf", figure.pdf)
    _write(to.markdown, markdown.render(document, to.figures.name).encode())
    return to.page


def _write(path: Path, data: bytes) -> None:
    try:
        make_folder(path.parent)
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
