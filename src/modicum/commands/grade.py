"""`modicum grade`."""

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from modicum.limits import Limits
from modicum.options import Parser
from modicum.settings import Settings
from modicum.types import UserError

EXAMPLES = r"""
modicum grade completions.jsonl > grades.jsonl        # needs: your file
modicum grade --time-limit 0.5 < completions.jsonl    # needs: your file
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


@dataclass(frozen=True)
class Options(Settings):
    """How answers are compared."""

    symbolic: bool = True
    """Compare formulas by algebra as well (default: yes)."""
    time_limit: Annotated[float, Limits(0, 1e6, above=True)] = 2.0
    """Seconds for the algebra of one answer; what takes longer is wrong."""


def run(args: list[str]) -> int:
    """Grade the lines of a file or of standard input."""
    parser = Parser("grade", SUMMARY, EXAMPLES)
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="JSON lines; none or - is stdin"
    )
    found, options = parser.options(args, Options, "grading")

    from modicum.answers import grade_lines

    counts = dict.fromkeys(("lines", "strict", "lenient", "error"), 0)
    with _opened(found.file) as stream:
        for result in grade_lines(stream, options.symbolic, options.time_limit):
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


def _opened(path: str) -> AbstractContextManager[BinaryIO]:
    try:
        return nullcontext(sys.stdin.buffer) if path == "-" else Path(path).open("rb")
    except OSError as error:
        raise UserError(f"modicum grade: cannot read {path}: {error.strerror}") from error
