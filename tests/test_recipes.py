"""Recipes: whole configs that parse, are documented, and run from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers import ENDED, QUICK, Fails
from modicum import cli, objectives, recipes, rewards, tasks, updates
from modicum.answers import STYLES
from modicum.config import TrainConfig, from_mapping, read_toml

DOCS = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_whole(name: str) -> None:
    config = recipes.named(name)
    tasks.parse(config.task)
    updates.parse(config.update)
    objectives.parse(config.objective)
    reward = rewards.parse(config.reward)
    # What its prompt asks for is what its format term rewards.
    asked = [term.style for _, term in reward.terms if isinstance(term, rewards.Format)]
    assert config.sampling.style in STYLES
    assert set(asked) <= {config.sampling.style}
    assert config.optimizer.learning_rate is not None
    about = recipes.about(name)
    if not config.model.startswith("models/"):
        assert all(word in about for word in ("Repeats:", "Departs", "Needs:", "Reports:"))
    assert re.search(rf"`{name}`", DOCS.read_text(encoding="utf-8"))


def test_recipes_are_shown_and_run(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    fails: Fails,
    folders: dict[str, Path],
) -> None:
    assert cli.run(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in recipes.RECIPES)
    assert cli.run(["recipes", "--json"]) == 0
    assert [e["name"] for e in json.loads(capsys.readouterr().out)] == list(recipes.RECIPES)
    assert cli.run(["recipes", "tinyzero"]) == 0
    (tmp_path / "t.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    shown = from_mapping(TrainConfig, read_toml(tmp_path / "t.toml"), "t.toml")
    assert shown == recipes.named("tinyzero")
    out = tmp_path / "run"
    options = [
        *QUICK,
        "--model",
        str(folders["qwen2"]),
        "--dtype",
        "fp32",
        "--style",
        "none",
        "--system",
        "",
        "--out",
        str(out),
    ]
    assert cli.run(["train", "--recipe", "tinyzero", *options, "--json"]) in ENDED
    ran = from_mapping(TrainConfig, read_toml(out / "config.toml"), "config.toml")
    assert (ran.task, ran.sampling.template) == ("countdown(numbers=4)", "r1_zero")
    assert "did you mean 'tinyzero'" in fails("train", "--recipe", "tinyzerro")
    assert "did you mean 'tina'" in fails("recipes", "tin")
    assert "not allowed with" in fails("train", "--recipe", "tina", "--config", out / "config.toml")
