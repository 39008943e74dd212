"""`modicum grade`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from modicum.options import Parser
from modicum.types import UserError

EXAMPLES = r"""
modicum grade completions.jsonl > grades.jsonl
modicum grade --time-limit 0.5 < completions.jsonl
echo '{"id": 7, "gold": "1/2", "answer": "\\boxed{0.5}"}' | modicum grade
echo '{"gold": "72", "completion": "So it is 72."}' | modicum grade
echo '{"numbers": [3, 8], "target": 24, "answer": "3*8"}' | modicum grade
"""
SUMMARY = """\
Grade answers that exist already: JSON lines in, JSON lines out, in the same order.

Each line is an object with `gold` and either `completion` (find the answer in it, then
compare) or `answer` (compare only); or with `numbers`, `target` and one of these, for
countdown. The line that comes out has `strict`, `lenient`, `extracted`, `reason`, and all
other keys of the object, such as `id`. A line that cannot be graded gives `error` and two
verdicts that are false; they are counted on standard error, and the exit code stays 0."""


def run(args: list[str]) -> int:
    """Grade the lines of a file or of standard input."""
    parser = Parser("grade", SUMMARY, EXAMPLES)
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="JSON lines; none or - is stdin"
    )
    parser.add_argument(
        "--symbolic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare formulas by algebra as well (default: yes)",
    )
    parser.add_argument(
        "--time-limit",
        metavar="SECONDS",
        default="2",
        help="for the algebra of one answer; what takes longer is wrong (default 2)",
    )
    found = parser.read(args)
    limit = _seconds(found.time_limit)

    from modicum.answers import grade_lines

    counts = dict.fromkeys(("lines", "strict", "lenient", "error"), 0)
    with _opened(found.file) as stream:
        for result in grade_lines(stream, found.symbolic, limit):
            print(json.dumps(result), flush=True)
            counts["lines"] += 1
            for key in ("strict", "lenient", "error"):
                counts[key] += bool(result.get(key))
    print(
        f"{counts['lines']} lines: {counts['strict']} strict, {counts['lenient']} lenient,"
        f" {counts['error']} with an error",
        file=sys.stderr,
    )
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"modicum grade: --time-limit must be a number above 0, not {text!r}")
    return seconds


def _opened(path: str) -> AbstractContextManager[BinaryIO]:
    try:
        return nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb")
    except OSError as error:
        raise UserError(f"modicum grade: cannot read {path}: {error.strerror}") from error
