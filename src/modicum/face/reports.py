"""`modicum.report`."""

from __future__ import annotations

from pathlib import Path

from modicum.face.result import TrainResult, folder_of
from modicum.types import UserError

STUDY = "study.toml"


def report(*runs: str | Path | TrainResult, out: str | Path = "", title: str = "") -> Path:
    """Write the report of some runs, or of one study, and return the path of its page.

    Markdown and figures are written beside it. `out` is the page; by default report.html in
    the folder of a single run or study, and here for several runs.
    """
    from modicum.report import page

    folders, out = [folder_of(run) for run in runs], out and Path(out).expanduser()
    if not folders:
        raise UserError("report needs at least one run folder")
    studies = [folder for folder in folders if (folder / STUDY).is_file()]
    if studies and len(folders) > 1:
        raise UserError(f"{studies[0]} is a study: it gets a report of its own")
    if studies:
        return page.write_study(folders[0], Path(out) if out else None, title or None)
    place = out or (None if len(folders) == 1 else "report.html")
    return page.write(folders, place, title or "modicum report")
