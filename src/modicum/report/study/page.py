"""The report of a study: one self-contained HTML page, Markdown beside it, figure files."""

from __future__ import annotations

from pathlib import Path

from modicum.report import output
from modicum.report.study import read
from modicum.report.study.document import document


def write(folder: Path, out: Path | None = None, title: str | None = None) -> Path:
    """Write the report of the study in `folder` and return the path of its page.

    Without `out`: report.html, report.md and figures/ in the folder; with `out` X.html:
    X.html, X.md, X-figures/. Raises UserError for a study that cannot be read or a file that
    cannot be written.
    """
    places, study = output.places(Path(folder), out), read.load(folder)
    title = title or f"Study of {study.analysis.task or folder.name}"
    return output.write(document(study, title), places)
