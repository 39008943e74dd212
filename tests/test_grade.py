"""`modicum grade`: what comes out for each line, what is refused, and the streams."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cases import load
from modicum import cli
from modicum.types import UserError

KEYS = {"strict", "lenient", "extracted", "reason"}


@pytest.fixture
def grade(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that grades lines given on standard input: (results, standard error)."""

    def run(lines: list[str | bytes | dict[str, Any]], *options: str) -> Any:
        rows = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
        data = b"\n".join(row.encode() if isinstance(row, str) else row for row in rows)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert cli.run(["grade", *options]) == 0
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], err

    return run


def test_the_shared_cases(grade: Any) -> None:
    lines: list[dict[str, Any]] = []
    expected = []
    for fn, keys in (("equiv", {"pred": "answer"}), ("score_completion", {}), ("countdown", {})):
        for case in load(fn):
            if case["input"].get("gold") != "":
                lines.append({keys.get(key, key): v for key, v in case["input"].items()})
                expected.append(bool(case["expected"]))
    results, err = grade([{"id": n, **line} for n, line in enumerate(lines)])
    assert [result["lenient"] for result in results] == expected
    assert [result["id"] for result in results] == list(range(len(lines)))
    assert all(set(result) == KEYS | {"id"} for result in results)
    assert err.startswith(f"{len(lines)} lines: ") and err.endswith(", 0 with an error\n")


def test_what_comes_out_of_each_kind_of_line(grade: Any) -> None:
    results, _ = grade(
        [
            {"gold": "1/2", "answer": r"\boxed{0.5}", "model": "m", "strict": "overwritten"},
            {"gold": "72", "completion": "So it is 72."},
            {"gold": 5, "answer": 5.0},
            {"numbers": [3, 8], "target": 24, "answer": "3*8", "gold": "passed by"},
            {"numbers": [3, 8], "target": 24, "completion": "<answer>3*8+0</answer>"},
            {"gold": "x+1", "answer": "\ud800"},
        ]
    )
    assert results[0] == {
        "model": "m",
        "strict": True,
        "lenient": True,
        "extracted": r"\boxed{0.5}",
        "reason": "the answer is right",
    }
    assert (results[1]["strict"], results[1]["lenient"], results[1]["extracted"]) == (
        False,
        True,
        "72",
    )
    assert [result["strict"] for result in results[2:]] == [True, True, False, False]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "not JSON"),
        ("", "empty"),
        (b"\xff\xfe", "not JSON"),
        ("[1]", "not an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"gold": NaN, "answer": "1"}', "NaN is no JSON"),
        ('{"gold": 1e999, "answer": "1"}', "too large"),
        ('{"gold": ' + "1" * 5000 + ', "answer": "1"}', "not JSON"),
        ({"gold": "5"}, "needs either `answer` or `completion`"),
        ({"gold": "5", "answer": "5", "completion": "5"}, "not both"),
        ({"answer": "5"}, "`gold` is missing"),
        ({"gold": None, "answer": "5"}, "`gold` must be a text, not null"),
        ({"gold": "5", "answer": True}, "`answer` must be a text, not true"),
        ({"gold": "", "answer": "5"}, "no content"),
        ({"gold": r"\frac{1}{2", "answer": "5"}, "braces"),
        ({"numbers": [1, True], "target": 2, "answer": "1"}, "whole numbers"),
        ({"numbers": [], "target": 2, "answer": "1"}, "whole numbers"),
        ({"numbers": [1], "answer": "1"}, "`target` must be a whole number"),
    ],
)
def test_a_bad_line_is_an_error_in_its_place(grade: Any, line: Any, fault: str) -> None:
    good = {"gold": "5", "answer": "5"}
    results, err = grade([good, line, good])
    assert [result["strict"] for result in results] == [True, False, True]
    assert results[1]["error"].startswith("line 2: ") and fault in results[1]["error"]
    assert results[1]["lenient"] is False and "error" not in results[2]
    assert err == "3 lines: 2 strict, 2 lenient, 1 with an error\n"


def test_options(grade: Any) -> None:
    line = {"gold": "x+1", "answer": "1+x"}
    assert grade([line])[0][0]["strict"]
    assert not grade([line], "--no-symbolic")[0][0]["strict"]
    assert grade([line], "--json", "--time-limit", "5")[0][0]["strict"]
    assert grade([])[0] == []
    for text in ("0", "-1", "nan", "inf", "soon"):
        with pytest.raises(UserError, match=r"--time-limit must be (a number|above 0)"):
            cli.run(["grade", "--time-limit", text])


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('\ufeff{"gold": "5", "answer": "5"}\r\n{"gold": "5", "answer": "6"}\n')
    assert cli.run(["grade", str(path)]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["strict"] for result in results] == [True, False]
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            cli.run(["grade", str(missing)])


def test_a_pipe_gets_each_verdict_at_once() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "modicum", "grade"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None and program.stdout is not None
    for answer in ("5", "6"):
        program.stdin.write(json.dumps({"gold": "5", "answer": answer}) + "\n")
        program.stdin.flush()
        assert json.loads(program.stdout.readline())["strict"] is (answer == "5")
    out, err = program.communicate()
    assert (program.returncode, out, err[:8]) == (0, "", "2 lines:")
