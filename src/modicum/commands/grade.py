"""`modicum grade`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from modicum.options import Parser
from modicum.types import Grade, UserError

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
READ = ("gold", "answer", "completion", "numbers", "target")


@dataclass(frozen=True)
class Rules:
    """How answers are compared."""

    symbolic: bool
    time_limit: float


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
    parser.add_argument("--json", action="store_true", help="accepted; JSON is what comes out")
    found = parser.read(args)
    rules = Rules(found.symbolic, _seconds(found.time_limit))

    counts = dict.fromkeys(("lines", "strict", "lenient", "error"), 0)
    with _opened(found.file) as stream:
        for result in grade_lines(stream, rules):
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


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 (closed below; only opening is guarded)
    except OSError as error:
        raise UserError(f"modicum grade: cannot read {path}: {error.strerror}") from error
    with stream:
        yield stream


def grade_lines(lines: Iterable[bytes], rules: Rules) -> Iterator[dict[str, Any]]:
    """One result for each line, in order; a line that cannot be graded has an `error`."""
    for number, line in enumerate(lines, 1):
        record: dict[str, Any] = {}
        try:
            record = _record(line)
            grade = _grade(record, rules)
            verdict = dict(vars(grade))
        except UserError as error:
            verdict = dict(vars(Grade(False, False, None, "not graded")))
            verdict["error"] = f"line {number}: {error}"
        yield {key: value for key, value in record.items() if key not in READ} | verdict


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(
            line.decode("utf-8-sig"), parse_float=_finite, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise UserError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"not JSON ({error})" if line.strip() else "empty") from error
    if not isinstance(record, dict):
        raise UserError("not an object; write {...}")
    return record


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _grade(record: dict[str, Any], rules: Rules) -> Grade:
    from modicum import answers

    whole = "completion" in record
    if whole == ("answer" in record):
        raise UserError("needs either `answer` or `completion`" + (", not both" if whole else ""))
    text = _text(record, "completion") if whole else _text(record, "answer")
    if "numbers" in record or "target" in record:
        numbers, target = _countdown(record)
        if whole:
            return answers.grade_countdown(text, numbers, target)
        right = answers.countdown(text, numbers, target)
    else:
        gold = answers.check_gold(_text(record, "gold"))
        if whole:
            return answers.grade(text, gold, rules.symbolic, rules.time_limit)
        right = answers.equal(gold, text, rules.symbolic, rules.time_limit)
    return Grade(right, right, text, "the answer is " + ("right" if right else "wrong"))


def _text(record: dict[str, Any], key: str) -> str:
    """A text, or a number as one."""
    if key not in record:
        raise UserError(f"`{key}` is missing")
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"`{key}` must be a text, not {json.dumps(value)[:40]}")
    return str(value)


def _countdown(record: dict[str, Any]) -> tuple[list[int], int]:
    numbers, target = record.get("numbers"), record.get("target")
    if not isinstance(numbers, list) or not numbers or not all(map(_is_whole, numbers)):
        raise UserError("`numbers` must be a list of whole numbers, such as [3, 8]")
    if not _is_whole(target):
        raise UserError("`target` must be a whole number")
    assert isinstance(target, int)
    return numbers, target


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
