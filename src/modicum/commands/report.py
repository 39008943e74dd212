"""`modicum report`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modicum.options import Parser, show
from modicum.types import UserError

if TYPE_CHECKING:
    from modicum.report.frame import Places

EXAMPLES = """
modicum report runs/full-seed0                         # runs/full-seed0/report.html
modicum report runs/full-seed0 runs/last-1-seed0
modicum report runs/demo/*-seed0 --out demo.html
modicum report studies/tiny                            # a study: studies/tiny/report.html
"""
STUDY = "study.toml"


@dataclass(frozen=True)
class Options:
    """What to write."""

    out: str = ""
    """The HTML file; Markdown and a folder of figures are written beside it (default: report.html in the folder, or here for several)."""
    title: str = ""
    """Its title."""


def run(args: list[str]) -> int:
    """Write the report of runs or of a study: HTML, Markdown, figures; print the runs' table."""
    parser = Parser("report", "Make an HTML report and a table of runs, or of a study.", EXAMPLES)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, or one of a study")
    found, options = parser.options(args, Options, "report")
    folders = [Path(name) for name in found.runs]
    if not folders:
        raise UserError("report needs at least one run folder")
    studies = [folder for folder in folders if (folder / STUDY).is_file()]
    if studies and len(folders) > 1:
        raise UserError(f"{studies[0]} is a study: it gets a report of its own")
    if studies:
        return _study(folders[0], options, found.json)
    return _runs(folders, options, found.json)


def _runs(folders: list[Path], options: Options, as_json: bool) -> int:
    from modicum.report import frame, page, read, tables

    out = options.out or (None if len(folders) == 1 else "report.html")
    page.write(folders, out, options.title or "modicum report")
    places = frame.places(folders[0], out)
    if as_json:
        results = [
            json.loads((f / "result.json").read_text(encoding="utf-8"))
            for f in folders
            if (f / "result.json").exists()
        ]
        print(json.dumps({**_paths(places), "results": results}))
    else:
        tables.show(tables.results([read.load(folder) for folder in folders]))
        print(_lines(places))
    return 0


def _study(folder: Path, options: Options, as_json: bool) -> int:
    from modicum.report import frame
    from modicum.report.study import page

    out = Path(options.out) if options.out else None
    page.write(folder, out, options.title or None)
    places = frame.places(folder, out)
    show(as_json, _paths(places), _lines(places))
    return 0


def _paths(places: Places) -> dict[str, str]:
    """Where the report is, for scripts."""
    return {
        "report": str(places.page),
        "markdown": str(places.markdown),
        "figures": str(places.figures),
    }


def _lines(places: Places) -> str:
    """Where the report is, for people."""
    return "\n".join(f"{name + ':':<10}{path}" for name, path in _paths(places).items())
