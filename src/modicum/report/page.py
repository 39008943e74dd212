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
from modicum.status import STUDY
from modicum.types import UserError


class Places(NamedTuple):
    """Where a report goes: the page, the Markdown beside it, the folder of its figures."""

    page: Path
    markdown: Path
    figures: Path


def write(folders: Sequence[str | Path], out: str | Path | None = None, title: str = "") -> Path:
    """Write the report about some runs, or about one study, and return the path of its page.

    With `out` X.html: X.html, X.md, X-figures/. Without, for a single folder: report.html,
    report.md and figures/ in it, and for several runs report.html here. Raises UserError for no
    folders, one that cannot be read or a file that cannot be written.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise UserError("report needs at least one run folder")
    to, study = places(paths, out), next((p for p in paths if (p / STUDY).is_file()), None)
    if study is None:
        found = runs.document([load(path) for path in paths], title or "modicum report")
    elif len(paths) > 1:
        raise UserError(f"{study} is a study: it gets a report of its own")
    else:
        record = load_study(study)
        title = title or f"Study of {record.analysis.task or study.name}"
        found = studies.document(record, title)
    return write_document(found, to)


def places(folders: Sequence[Path], out: str | Path | None) -> Places:
    """FOLDER/{report.html, report.md, figures/}, or OUT.html, OUT.md and OUT-figures/.

    Raises UserError for a Markdown file as `out`: it is the name of the page.
    """
    if not out and len(folders) == 1:
        (folder,) = folders
        return Places(folder / "report.html", folder / "report.md", folder / "figures")
    page = Path(out or "report.html")
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
