"""What README and docs print for readers to type: every command line parses, with its values.

Those that need nothing run, in small settings (slow); so do the notebooks and the README's Python."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import QUICK, make_run
from modicum import cli
from printed_examples import (
    OWN,
    PAGES,
    ROOT,
    check_values,
    commands_of,
    inline_of,
    plan_little,
    python_of,
    words,
)

# In the text of a page: the form of a line and no line, or one that is there to be refused.
FORM = re.compile(r"COMMAND|EXPR|NAME|auto\|split|--lr |--config$")
EVERY = [(page, line) for page in PAGES for line in commands_of(page)]
EVERY += [(page, line) for page in PAGES for line in inline_of(page) if not FORM.search(line)]
NAMED = [(str(page.relative_to(ROOT)), line) for page, line in EVERY]


@pytest.mark.parametrize(("page", "line"), NAMED, ids=[f"{page}: {line}" for page, line in NAMED])
def test_a_line_of_the_docs_parses(page: str, line: str, parsed: Any) -> None:
    args = words(line)
    if "--help" in args:
        assert args[0] in cli.COMMANDS
        return
    check_values(args[0], parsed(args), skip_reward=bool(OWN.search(line)))


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_python_of_a_page_is_python(page: Path) -> None:
    for block in python_of(page):
        ast.parse(block)


def test_lines_are_found_on_all_pages_that_have_some() -> None:
    pages = {page for page, _ in NAMED}
    assert {"README.md", "docs/commands.md", "docs/wrong.md", "docs/runs.md"} <= pages
    assert len(NAMED) > 150


# Runs that docs speak of, and what trains in them; the tests make them.
RUNS = {"full-seed0": "full", "mine": "full", "last1": "last(1)", "last-1-seed0": "last(1)"}
RUNS |= {"lora": "lora(rank=2)", "lora-rank8-seed0": "lora(rank=8)"}
THEIRS = re.compile(rf"\bruns/({'|'.join(RUNS)})(?![\w-])(/config.toml)?")
# What a fresh checkout lacks: another run, a file, the hub, a GPU, a server, an extra.
LACKS = re.compile(
    r"runs/|RUN|MODEL|ADAPTER|BASE|FOLDER|\bM\b|Qwen|SmolLM|gsm8k|hub\(|file\(|\.json|\.toml|my_|\.py:"
    r"|torchrun|--resume|--parallel|--sampler|--quantise|--tracker|--recipe|learned\(|cuda|--launcher"
    r"|--config|--dry-run|addition|out/|studies/"
)
FEW = ["--prompts-per-step", "2", "--group-size", "2", "--max-tokens", "6"]
SHORT: dict[str, list[str]] = {
    "train": [*QUICK, "--no-anatomy", "--overwrite"],
    "doctor": FEW,
    "evaluate": ["--problems", "2", "--samples", "1", "--max-tokens", "6"],
    "audit-reward": ["--problems", "2"],
    "tasks": [],
    "updates": [],
    "recipes": [],
    "compare": [],
    "report": [],
    "export": ["--overwrite"],
    "runs": [],
    "watch": [],
}
RUN = [
    (page, line)
    for page, line in dict.fromkeys(NAMED)
    if words(line)[0] in SHORT and not LACKS.search(THEIRS.sub("", line)) and "--help" not in line
]


@pytest.fixture(scope="module")
def runs_there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("there")
    for name, update in RUNS.items():
        make_run(root / name, Path("tiny"), "--update", update, "--no-anatomy")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({page for page, _ in RUN}))
def test_lines_that_need_nothing_run(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quiet: None,
    no_pdf: None,
    runs_there: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs_there, tmp_path / "runs")
    monkeypatch.setattr("modicum.machine.reset_peak", lambda: None)
    plan_little(monkeypatch)
    for line in [line for of, line in RUN if of == page]:
        args = words(line)
        assert cli.run([*args, *SHORT[args[0]]]) in (0, 1, 3), line
        capsys.readouterr()


@pytest.mark.slow
def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = python_of(ROOT / "README.md")
    assert "steps=40" in code
    small = "steps=1, prompts_per_step=4, group_size=4, max_tokens=20, eval_problems=4"
    ran: dict[str, Any] = {}
    exec(code.replace("steps=40", small), ran)
    assert 0 <= ran["result"].accuracy <= 1
    assert (tmp_path / "models/mine/config.json").is_file()
