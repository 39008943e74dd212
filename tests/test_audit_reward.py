"""`modicum audit-reward`: what is flagged, and that the shipped rewards are not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers import Fails
from modicum import cli, rewards, tasks
from modicum.answers import STYLES
from modicum.config import TrainConfig
from modicum.rewards.audit import RIGHT, audit, near_miss

GSM8K = "gsm8k(path='tests/data/gsm8k')"


def any_answer(completions: list[str], **columns: Any) -> list[float]:
    """TinyZero's credit: a tenth for any answer tag."""
    return [0.1 * ("<answer>" in text and "</answer>" in text) for text in completions]


def looks_like_gold(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """Pays for a marked whole number, whichever it is."""
    said = [text.partition("<answer>")[2].partition("</answer>")[0] for text in completions]
    return [float(text.strip().lstrip("-").isdigit()) for text in said]


def contains_gold(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """The gold answer is somewhere in the text."""
    return [float(gold in text) for gold, text in zip(answer, completions, strict=True)]


def prefers_brevity(completions: list[str], **columns: Any) -> list[float]:
    return [2.0 if len(text) < 60 else 0.0 for text in completions]


def breaks(completions: list[str]) -> list[float]:
    raise RuntimeError("no judge")


def flagged(task: str, reward: str, style: str = "tags", share: float = 0.5) -> dict[str, str]:
    made = tasks.parse(task)
    problems = [made.problem("train", 0, index) for index in range(2)]
    found = audit(made, rewards.parse(reward), STYLES[style], problems, share)
    assert found[0].name == RIGHT
    assert found[0].why == ""
    return {finding.name: finding.why for finding in found if finding.why}


@pytest.mark.parametrize("task", ["arithmetic", "countdown", GSM8K])
@pytest.mark.parametrize("style", STYLES)
def test_nothing_pays_under_the_shipped_rewards(task: str, style: str) -> None:
    shaped = f"accuracy + 0.2*format(style={style!r}) + 0.1*consistency + 0.1*language"
    for reward in {
        TrainConfig().reward,
        TrainConfig(update="full").reward,
        "accuracy(lenient=True)",
        shaped,
    }:
        assert flagged(task, reward, style) == {}


def test_the_right_answer_earns_all_that_there_is() -> None:
    made = tasks.parse("arithmetic")
    terms = "accuracy + format + consistency + language + length(100) + repetition"
    found = audit(made, rewards.parse(terms), STYLES["tags"], [made.problem("train", 0, 1)], 0.5)
    assert found[0].scores == dict.fromkeys(found[0].scores, 1.0)


@pytest.mark.parametrize(
    ("reward", "wanted"),
    [
        ("accuracy + test_audit_reward:any_answer", set()),
        ("format", {"constant", "near miss", "marks around words", "near miss, very long"}),
        ("accuracy + 2*format", {"constant", "near miss", "question as answer"}),
        ("test_audit_reward:looks_like_gold", {"constant", "near miss"}),
        (
            "test_audit_reward:contains_gold",
            {"several answers in one mark", "several marked answers"},
        ),
        ("language", {"copy of the question", "copy of the prompt"}),
        ("consistency", {"near miss, worked out"}),
        ("accuracy + test_audit_reward:prefers_brevity", {"empty", "right, without reasoning"}),
    ],
)
def test_a_reward_that_can_be_cheated_is_flagged(reward: str, wanted: set[str]) -> None:
    found = set(flagged("arithmetic", reward))
    assert found >= wanted
    assert bool(found) == bool(wanted)


def test_a_share_decides_what_is_too_much() -> None:
    reward = "accuracy + 0.4*format"
    assert flagged("arithmetic", reward, share=0.5) == {}
    assert set(flagged("arithmetic", reward, share=0.25).values()) == {"earns more than 25% of it"}


@pytest.mark.parametrize(
    ("gold", "near"), [("7", "8"), ("-1", "0"), ("1/3", "1/31"), ("x", "x + 1")]
)
def test_a_near_miss_is_wrong(gold: str, near: str) -> None:
    assert near_miss(gold) == near


# The command -----------------------------------------------------------------------------


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["audit-reward", "--reward", "accuracy + 2*format", "--problems", "3"]
    assert cli.run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2*format + accuracy on arithmetic, style tags: means over 3")
    (near,) = [line for line in lines if line.startswith("near miss  ")]
    assert " ".join(near.split()) == "near miss 2.00 1.00 0.00 <- earns more than 50% of it"
    assert cli.run([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first = found["answers"][0]
    assert (first["name"], first["total"]) == (RIGHT, 3)
    assert first["scores"] == {"format": 1, "accuracy": 1}
    assert "<answer>" in first["example"]


def test_strict_is_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["audit-reward", "--strict", "--problems", "2"]) == 0
    assert cli.run(["audit-reward", "--strict", "--problems", "2", "--reward", "format"]) == 1
    assert "of 21 degenerate answers are flagged" in capsys.readouterr().out


def test_mistakes_are_one_line(fails: Fails) -> None:
    assert "share must be at least 0 and at most 1" in fails("audit-reward", "--share", "2")
    assert "did you mean 'boxed'" in fails("audit-reward", "--style", "boxd")
    assert "RuntimeError: no judge" in fails("audit-reward", "--reward", "test_audit_reward:breaks")
