"""The examples of every --help: they parse, and those that need nothing run as printed.

A comment `needs: ...` names what a fresh checkout lacks: the hub, a file of yours, a command that
comes before. New commands are picked up; one whose examples take long gets a row in SMALL.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import QUICK
from modicum import cli, options
from printed_examples import ROOT, check_values, plan_little, words

pytestmark = pytest.mark.usefixtures("quiet", "no_pdf")
NEEDS = re.compile(r"#.*needs: (.*)")
# Options that make them short, below what is printed; None: they are only parsed.
FEW = ["--prompts-per-step", "2", "--group-size", "2", "--max-tokens", "6"]
SMALL: dict[str, list[str] | None] = {
    "train": [*QUICK, "--no-anatomy"],
    "doctor": FEW,
    "evaluate": ["--problems", "2", "--samples", "1", "--max-tokens", "6"],
    "difficulty": ["--problems", "1", "--samples", "1", "--max-tokens", "6"],
    "pairs": ["--problems", "1", "--samples", "2", "--max-tokens", "6"],
    "demo": None,
    "plan": None,
    "probe": None,
    "scan": None,
    "study": None,
}
SLOW = ("train", "report")
NOTHING = (1, 3)  # exit codes of doctor and train where such few samples have no signal


def lines_of(name: str) -> list[str]:
    text = options.HELP["commands"][name]["examples"]
    return [line for line in text.strip().splitlines() if "modicum " in line]


EVERY = [(name, line) for name in cli.COMMANDS for line in lines_of(name)]


@pytest.mark.parametrize(("name", "line"), EVERY, ids=[line for _, line in EVERY])
def test_an_example_parses(name: str, line: str, parsed: Any) -> None:
    found = parsed(words(line))
    check_values(name, found, skip_reward="your" in "".join(NEEDS.findall(line)))


@pytest.mark.parametrize(("name", "line"), EVERY, ids=[line for _, line in EVERY])
def test_what_an_example_needs_is_named(name: str, line: str, parsed: Any) -> None:
    args, needs = words(line), "".join(NEEDS.findall(line))
    for command in re.findall(r"modicum (?:train|demo)[^;]*", needs):
        parsed(shlex.split(command)[1:])
    for script in re.findall(r"scripts/\w+\.py", needs):
        assert (ROOT / script).is_file()
    for word in args:
        if "SmolLM2" in word:
            assert "fetch_smollm2.py" in needs
        if re.match(r"hub\(|gsm8k$|Qwen/", word) and name != "plan":
            assert "the hub" in needs
        if "tests/" in word or word.startswith("studies/"):
            place = re.findall(r"(?:tests|studies)/[\w/.-]+", word)[0]
            assert (ROOT / place).exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in cli.COMMANDS
        if SMALL.get(name, []) is not None
    ],
)
def test_examples_that_need_nothing_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, as in a fresh checkout."""
    monkeypatch.chdir(tmp_path)
    for folder in ("tests", "studies"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr("modicum.machine.reset_peak", lambda: None)  # it collects all garbage
    if name in ("train", "doctor"):
        plan_little(monkeypatch)
    for line in lines_of(name):
        if NEEDS.search(line):
            continue
        args = words(line)
        if " | modicum" in line:
            told = shlex.split(line.partition(" | ")[0])[1]
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(told.encode())))
        short = ["--steps", "2"] if "--resume" in args else SMALL.get(args[0]) or []
        code = cli.run([*args, *short])
        assert code == 0 or (args[0] in ("train", "doctor") and code in NOTHING), line
        capsys.readouterr()


@pytest.mark.slow
def test_the_first_run_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/first_run.md, as it is written, with small settings."""
    text = (ROOT / "docs" / "first_run.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modicum.machine.reset_peak", lambda: None)
    plan_little(monkeypatch)
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in blocks] == ["make_sums.py", "my_rewards.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    ran = []
    for line in re.findall(r"^(?:modicum|python) .*", text, re.MULTILINE):
        if line.startswith("python "):
            exec((tmp_path / line.split()[1]).read_text(), {})
            continue
        args = words(line)
        small = {"--resume": ["--steps", "3"], "--reward": [*FEW, "--group-size", "6"]}
        more = [option for key, options in small.items() if key in args for option in options]
        held = ["--eval-problems", "4", "--eval-samples", "1", "--no-anatomy"]
        if args[0] == "train" and "--resume" not in args:
            more += [*held, "--steps", "2"]
        assert cli.run([*args, *more]) in (0, *NOTHING), line
        ran.append(args[0])
    assert ran == ["tasks", "doctor", "train", "compare", "report", "train"]
    out = capsys.readouterr().out
    assert "gold right for 200 of 200" in out
    assert "my_rewards.py:worked no verdict" in out
