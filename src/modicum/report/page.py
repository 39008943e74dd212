"""The report of runs or of a study: one self-contained HTML page, Markdown, figure files.

Nothing may be loaded, and of scripts only the page's own runs, named by its SHA-256. What a model
wrote is escaped. `page.html` and `page.md` have a macro for each kind of block."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from modicum.disk import make_folder
from modicum.report import runs, words
from modicum.report.document import Document, Figure
from modicum.report.read import load
from modicum.report.study import document as studies
from modicum.report.study.read import load as load_study
from modicum.report.style import Drawn, drawn, styled
from modicum.report.words import marked, printable
from modicum.status import STUDY
from modicum.types import UserError

SPECIAL = re.compile(r"([\\`*_\[<>|&#~$])")  # of Markdown


class Places(NamedTuple):
    """Where a report goes: the page, the Markdown beside it, the folder of its figures."""

    report: Path
    markdown: Path
    figures: Path


def write(folders: Sequence[str | Path], out: str | Path | None = None, title: str = "") -> Path:
    """Write the report about some runs, or about one study, to `places`; the path of its page.

    Raises UserError for no folders, one that cannot be read or a file that cannot be written."""
    paths = [Path(folder) for folder in folders]
    return write_document(read(paths, title), places(paths, out))


def read(paths: Sequence[Path], title: str = "") -> Document:
    """What is to be said about some runs, or about one study; raises as `write` does."""
    if not paths:
        raise UserError("report needs at least one run folder")
    study = next((path for path in paths if (path / STUDY).is_file()), None)
    if study is None:
        return runs.document([load(path) for path in paths], title or "modicum report")
    if len(paths) > 1:
        raise UserError(f"{study} is a study: it gets a report of its own")
    record = load_study(study)
    return studies.document(record, title or f"Study of {record.analysis.task or study.name}")


def places(folders: Sequence[Path], out: str | Path | None) -> Places:
    """FOLDER/{report.html, report.md, figures/}, or OUT.html (not .md), OUT.md and OUT-figures/."""
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
    found = draw(document.blocks(Figure))
    files = {to.report: html(document, found, to).encode()}
    for name, figure in found.items():
        files[to.figures / f"{name}.svg"] = figure.svg.encode()
        files[to.figures / f"{name}.pdf"] = figure.pdf
    files[to.markdown] = markdown(document, to.figures.name, to.report.parent).encode()
    write_files(files)
    return to.report


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write files, their folders made; UserError for one that cannot be written."""
    for path, data in files.items():
        try:
            make_folder(path.parent)
            path.write_bytes(data)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None


def html(document: Document, drawn: Mapping[str, Drawn], to: Places | None = None) -> str:
    """Any document as a page, with links to the files beside it; a figure not `drawn` is left out."""
    script = words.file("page.js").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template, css = words.environment().get_template("page.html"), words.file("page.css").strip()
    values = {"css": Markup(css), "script": Markup(script), "script_hash": f"sha256-{digest}"}
    data = linked(document, to.report.parent) if to else []
    return template.render(document=document, drawn=drawn, data=data, to=to, **values)


def linked(document: Document, folder: Path) -> list[str]:
    """The files that a document is made of, those that lie in or below a folder, relative to it."""
    inside = (file for file in document.data if file.is_relative_to(folder) and file.is_file())
    return [file.relative_to(folder).as_posix() for file in inside]


def markdown(document: Document, figures: str, folder: Path | None = None) -> str:
    """Any document as Markdown in a folder; `figures` is that of the figures, relative to it."""
    template = words.environment(escaped=escaped, code=code, fenced=fenced, prose=prose)
    data = linked(document, folder) if folder else []
    text = template.get_template("page.md").render(document=document, folder=figures, data=data)
    return text.strip("\n") + "\n"


def escaped(text: str) -> str:
    """`text` as one line of Markdown that shows it as it is."""
    return _shown(text).strip()


def code(text: str) -> str:
    """`text` as inline code, in a cell of a table too."""
    text = " ".join(printable(text).split()).replace("|", "\\|")
    fence = "`" * (1 + _ticks(text))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def fenced(text: str, language: str = "text") -> str:
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
