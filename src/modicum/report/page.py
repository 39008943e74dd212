"""The report of one or several runs: one self-contained HTML page, Markdown, figure files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modicum.report import content, frame, markdown
from modicum.report.content import Content
from modicum.report.frame import Drawn
from modicum.report.read import load
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
    places = frame.places(Path(folders[0]), out)
    found = content.gather([load(folder) for folder in folders], title)
    drawn = frame.draw(found.figures)
    frame.write(places.page, render(found, drawn))
    frame.save_figures(drawn, places.figures)
    frame.write(places.markdown, markdown.render(found, places.figures.name))
    return places.page


def render(found: Content, drawn: Sequence[Drawn]) -> str:
    """The page as text."""
    return frame.render(
        "run.html",
        title=found.title,
        contents=sections(found),
        found=found,
        drawn={figure.name: figure for figure in drawn},
        about=content.about,
    )


def sections(found: Content) -> list[tuple[str, str]]:
    """The sections that the page has: id, name."""
    drawn = {figure.name for figure in found.figures}
    there = {
        ("results", "Results"): found.results is not None,
        ("difficulty", "By difficulty"): found.levels is not None,
        ("training", "During training"): "learning" in drawn or "training" in drawn,
        ("written", "What the model wrote"): bool(found.answers or found.samples),
        ("weights", "What changed in the weights"): found.changes is not None,
        ("proof", "Proof of what was trained"): bool(found.proofs),
        ("intervals", "How the intervals are computed"): bool(found.intervals),
        ("settings", "Settings"): bool(found.settings.shared or found.settings.different),
        ("versions", "Versions"): bool(found.versions.shared or found.versions.different),
        ("repeat", "How to repeat it"): bool(found.repeat),
    }
    return [section for section, known in there.items() if known]
