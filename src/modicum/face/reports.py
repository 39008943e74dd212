"""`modicum.report` and `modicum.study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modicum.face.result import TrainResult, folder_of
from modicum.types import UserError

if TYPE_CHECKING:
    from modicum.study.design import Study
    from modicum.study.launch import StudyObserver
    from modicum.study.run import StudyOutcome

STUDY = "study.toml"


def report(*runs: str | Path | TrainResult, out: str | Path = "", title: str = "") -> Path:
    """Write the report of some runs, or of one study, and return the path of its page.

    Markdown and figures are written beside it. `out` is the page; by default report.html in
    the folder of a single run or study, and here for several runs.
    """
    from modicum.report import page
    from modicum.report.study import page as study_page

    folders = [folder_of(run) for run in runs]
    if not folders:
        raise UserError("report needs at least one run folder")
    studies = [folder for folder in folders if (folder / STUDY).is_file()]
    if studies and len(folders) > 1:
        raise UserError(f"{studies[0]} is a study: it gets a report of its own")
    if studies:
        return study_page.write(folders[0], Path(out) if out else None, title or None)
    place = out or (None if len(folders) == 1 else "report.html")
    return page.write(folders, place, title or "modicum report")


def study(
    design: str | Path | Study,
    out: str | Path = "",
    *,
    jobs: int = 1,
    launcher: str = "processes",
    retry_failed: bool = False,
    observer: StudyObserver | None = None,
) -> StudyOutcome:
    """Run what is missing of a study, judge its arms and write its report.

    `design` is a study.toml, the folder of a study that has begun, or a `Study`; `out` its
    folder. `jobs` runs go at the same time. After Ctrl-C the same call goes on.
    """
    from modicum.study.run import run_study

    return run_study(
        design, out, jobs=jobs, launcher=launcher, retry_failed=retry_failed, observer=observer
    )
