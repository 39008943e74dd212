"""`modicum report`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modicum.config import from_mapping
from modicum.options import Parser, add_options, given

if TYPE_CHECKING:
    from modicum.report.frame import Places

EXAMPLES = """
modicum report runs/full-seed0                         # runs/full-seed0/report.html
modicum report runs/full-seed0 runs/last-1-seed0
modicum report runs/demo/*-seed0 --out demo.html
modicum report studies/tiny                            # a study: studies/tiny/report.html
"""


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
    parser.add_argument("--json", action="store_true", help="print paths and results as JSON")
    add_options(parser, Options, "report")
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")
    folders = [Path(name) for name in found.runs]

    from modicum.face.reports import STUDY, report

    report(*folders, out=options.out, title=options.title)
    if (folders[0] / STUDY).is_file():
        return _study(folders[0], options, found.json)
    return _runs(folders, options, found.json)


def _runs(folders: list[Path], options: Options, as_json: bool) -> int:
    from modicum.report import frame, read, tables

    out = options.out or (None if len(folders) == 1 else "report.html")
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

    places = frame.places(folder, options.out or None)
    print(json.dumps(_paths(places)) if as_json else _lines(places))
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
