"""The docs name what exists: metrics, members of the kinds, commands."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modicum import cli, rewards, runs, tasks, updates
from modicum.train import train

ROOT = Path(__file__).resolve().parent.parent


def test_every_metric_is_explained(quick: Any) -> None:
    config = replace(quick, objective="grpo(kl=0.01)", steps=3, update="last(1)")
    train(config)
    lines = runs.read_lines(Path(config.out) / "metrics.jsonl")
    logged = {key for line in lines for key in line if key != "reward/digits"}
    explained = set(re.findall(r"^\| `([^`]+)`", (ROOT / "docs/metrics.md").read_text(), re.M))
    assert logged <= explained
    assert explained - logged == {"reward/TERM"}


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/updates.md", updates.UPDATES),
        ("docs/grading.md", rewards.REWARDS),
        ("README.md", tasks.TASKS),
        ("README.md", cli.COMMANDS),
    ],
    ids=["updates", "rewards", "tasks", "commands"],
)
def test_every_member_is_documented(page: str, names: dict[str, Any]) -> None:
    text = (ROOT / page).read_text()
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_options_named_in_the_docs_exist() -> None:
    from modicum.config import TrainConfig
    from modicum.options import Parser, add_options

    parser = Parser("train", "", "")
    add_options(parser, TrainConfig)
    known = {option for action in parser._actions for option in action.option_strings}
    known |= {"--config", "--resume", "--overwrite", "--json", "--model", "--split", "--problems"}
    known |= {"--samples", "--count", "--format", "--help", "--updates", "--title", "--version"}
    known |= {"--wheel", "--force", "--dtype", "--rates", "--seeds"}  # of the scripts
    text = "".join(p.read_text() for p in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known
