"""`modicum report`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from modicum.config import from_mapping
from modicum.options import Parser, add_options, given
from modicum.types import UserError

EXAMPLES = """
modicum report runs/full-seed0 runs/last-1-seed0
modicum report runs/demo/* --out demo.html
"""


@dataclass(frozen=True)
class Options:
    """What to write."""

    out: str = "report.html"
    """The HTML file."""
    title: str = "modicum report"
    """Its title."""


def run(args: list[str]) -> int:
    """Write an HTML report of runs and print their table."""
    parser = Parser("report", "Make an HTML report and a table of runs.", EXAMPLES)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_options(parser, Options, "report")
    found = parser.read(args)
    options = from_mapping(Options, given(Options, found), "options")
    if not found.runs:
        raise UserError("report needs at least one run folder")

    from modicum.report import page, read, tables

    folders = [Path(name) for name in found.runs]
    records = [read.load(folder) for folder in folders]
    out = page.write(folders, Path(options.out), options.title)
    if found.json:
        results = [
            json.loads((f / "result.json").read_text(encoding="utf-8"))
            for f in folders
            if (f / "result.json").exists()
        ]
        print(json.dumps({"report": str(out), "results": results}))
    else:
        tables.show(tables.results(records))
        print(f"report: {out}")
    return 0
