"""The report of runs or of a study: one self-contained HTML page, Markdown, figure files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from modicum.disk import make_folder
from modicum.report import html, markdown, runs
from modicum.report.document import Document, Figure
from modicum.report.read import load
from modicum.report.study import document as studies
from modicum.report.study.read import load as load_study
from modicum.report.style import Drawn, drawn, styled
from modicum.types import UserError


class Places(NamedTuple):
    """Where a report goes: the page, the Markdown beside it, the folder of its figures."""

    page: Path
    markdown: Path
    figures: Path


def write(
    folders: Sequence[str | Path], out: str | Path | None = None, title: str = "modicum report"
) -> Path:
    """Write the report about the runs in `folders` and return the path of its page.

    With `out` X.html: X.html, X.md, X-figures/. Without, for a single run: report.html,
    report.md and figures/ in its folder. Raises UserError for no folders, a run that cannot
    be read or a file that cannot be written.
    """
    if not folders:
        raise UserError("a report needs at least one run folder")
    if out is None and len(folders) > 1:
        raise UserError("a report of several runs needs the name of a file, such as report.html")
    to = places(Path(folders[0]), out)
    return write_document(runs.document([load(folder) for folder in folders], title), to)


def write_study(folder: Path, out: Path | None = None, title: str | None = None) -> Path:
    """Write the report of the study in `folder` and return the path of its page; as `write`."""
    to, study = places(folder, out), load_study(folder)
    title = title or f"Study of {study.analysis.task or folder.name}"
    return write_document(studies.document(study, title), to)


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
    with styled():
        return {f.name: drawn(f.draw(False), f.draw(True), f.label) for f in figures}


def write_document(document: Document, to: Places) -> Path:
    """Write the page, NAME.svg and NAME.pdf of every figure, and the Markdown."""
    found = draw(document.figures())
    files = {to.page: html.render(document, found).encode()}
    for name, figure in found.items():
        files[to.figures / f"{name}.svg"] = figure.svg.encode()
        files[to.figures / f"{name}.pdf"] = figure.pdf
    files[to.markdown] = markdown.render(document, to.figures.name).encode()
    for path, data in files.items():
        try:
            make_folder(path.parent)
            path.write_bytes(data)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return to.page
