"""The report of runs or of a study: one self-contained HTML page, Markdown, figure files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modicum.report import output
from modicum.report.read import load
from modicum.report.runs import document
from modicum.report.study.document import document as study_document
from modicum.report.study.read import load as load_study
from modicum.types import UserError


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
    places = output.places(Path(folders[0]), out)
    return output.write(document([load(folder) for folder in folders], title), places)


def write_study(folder: Path, out: Path | None = None, title: str | None = None) -> Path:
    """Write the report of the study in `folder` and return the path of its page; as `write`."""
    places, study = output.places(folder, out), load_study(folder)
    title = title or f"Study of {study.analysis.task or folder.name}"
    return output.write(study_document(study, title), places)
