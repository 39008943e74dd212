"""The report of a study: one self-contained HTML page, Markdown beside it, figure files."""

from __future__ import annotations

from pathlib import Path

from modicum.report import frame
from modicum.report.study import content, markdown, read
from modicum.report.study.content import Content


def write(folder: Path, out: Path | None = None, title: str | None = None) -> Path:
    """Write the report of the study in `folder` and return the path of its page.

    Without `out`: report.html, report.md and figures/ in the folder; with `out` X.html:
    X.html, X.md, X-figures/. Raises UserError for a study that cannot be read or a file that
    cannot be written.
    """
    places = frame.places(Path(folder), out)
    study = read.load(folder)
    found = content.gather(study, title or f"Study of {study.analysis.task or folder.name}")
    frame.write(places.page, render(found))
    frame.save_figures(found.figures.values(), places.figures)
    frame.write(places.markdown, markdown.render(found, places.figures.name))
    return places.page


def render(found: Content) -> str:
    """The page as text."""
    return frame.render(
        "study/study.html",
        title=found.title,
        contents=content.sections(found),
        found=found,
        marked=content.marked,
        about=content.about,
    )
