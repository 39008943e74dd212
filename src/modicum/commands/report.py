"""`modicum report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum.options import Parser, show
from modicum.runs import read_object


@dataclass(frozen=True)
class Options:
    """What to write."""

    out: str = ""
    """The HTML file; Markdown and a folder of figures are written beside it (default: report.html in the folder, or here for several)."""
    title: str = ""
    """Its title."""


def run(args: list[str]) -> int:
    """Write the report of runs or of a study: HTML, Markdown, figures; print the runs' table."""
    parser = Parser("report")
    parser.folder("runs", "run folders, or one of a study", nargs="*", metavar="RUN")
    found, options = parser.options(args, Options, "report")
    folders = [Path(name) for name in found.runs]

    from modicum.face.training import report
    from modicum.report import page, read, tables
    from modicum.status import STUDY, Status

    report(*folders, out=options.out, title=options.title)
    study = (folders[0] / STUDY).is_file()
    paths = dict(
        zip(("report", "markdown", "figures"), page.places(folders, options.out), strict=True)
    )
    values: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    if not study and not found.json:
        records = [read.load(folder) for folder in folders]
        if rows := tables.results(records):
            tables.show(rows)
        for record in records:
            if record.result is None:
                print(f"{record.folder}: no result yet; {Status(record.folder).so_far}")
    elif not study:
        done = (read_object(folder / "result.json", optional=True) for folder in folders)
        values["results"] = list(filter(None, done))
    show(found.json, values, "\n".join(f"{name + ':':<10}{path}" for name, path in paths.items()))
    return 0
