"""Reward terms: the contract that each keeps, and how they join."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from cases import load
from modicum import rewards
from modicum.rewards import REWARDS, Accuracy, Format, Reward, Term
from modicum.spec import Spec
from modicum.tasks.arithmetic import Arithmetic
from modicum.types import Completion, Problem, UserError

TASK = Arithmetic()
PROBLEM = TASK.problem("train", 0, 0)
STEP = f"{int(PROBLEM.answer) - 1} + 1 = {PROBLEM.answer}"
RIGHT = f"<think>I add: {STEP}.</think> <answer>{PROBLEM.answer}</answer>"
TEXTS = [
    *("", " ", "\x00", "\ud800", "<answer>", "</think>" * 50, "{" * 5000, r"\boxed{1}", "no"),
    *(RIGHT, f"<answer>{PROBLEM.answer}</answer>", f"it is {PROBLEM.answer}", "9**9**9**9"),
    *(
        "1/0 = 1/0<answer>1</answer>",
        "\u0660+\u0661=\u00b2<answer>\u00b2</answer>",
        "中\u0301\U0001f600",
    ),
]
# Each would take minutes where time grows with the square of the length.
LONG = ["(", "((1=", "3+4=7;", r"\frac{1}{", "<<1=", "$a", " ", "<think>"]

# What a member needs that cannot do without arguments.
ARGUMENTS: dict[str, str] = {
    "length": "length(max_tokens=80)",
    "function": "function('test_rewards:says_something')",
    "learned": "learned('runs/reward')",
}
MEMBERS = [ARGUMENTS.get(name, name) for name in REWARDS]
# Those that a model in memory scores are tried in tests/test_learned.py.
ALONE = [ARGUMENTS.get(name, name) for name, cls in REWARDS.items() if not cls.learned]


def says_something(completions: list[str], **columns: Any) -> list[float]:
    """A reward function of a user."""
    return [float(bool(text.strip())) for text in completions]


def member(text: str) -> Term:
    ((_, term),) = rewards.parse(text).terms
    return term


def said(text: str) -> Completion:
    return Completion((1,), (0.0,), text, finished=True)


def total(reward: Reward, text: str) -> float:
    return reward.total(reward.score_group(TASK, PROBLEM, [said(text)], [])[0])


# The contract of every member ------------------------------------------------------------


@pytest.mark.parametrize("name", ALONE)
def test_a_score_lies_between_0_and_1(name: str) -> None:
    term = member(name)
    group = [said(text) for text in TEXTS]
    scores = term.score_group(TASK, PROBLEM, group, [])
    assert [type(score) for score in scores] == [float] * len(group)
    assert [t for t, score in zip(TEXTS, scores, strict=True) if not 0 <= score <= 1] == []
    if not term.placebo:
        assert scores == [term.score(TASK, PROBLEM, completion) for completion in group]


@pytest.mark.parametrize("name", ALONE)
def test_a_long_text_takes_no_time(name: str) -> None:
    term = member(name)
    for piece in LONG:
        text = piece * (100_000 // len(piece)) + "<answer>7</answer>"
        began = time.process_time()
        assert 0 <= term.score(TASK, PROBLEM, said(text)) <= 1
        assert time.process_time() - began < 0.5, f"{piece!r} repeated"


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_documented_frozen_and_parsed(name: str) -> None:
    term = member(name)
    assert REWARDS[term.name] is type(term)
    assert isinstance(term, Spec)
    assert type(term).__doc__
    assert hash(term) == hash(member(name))
    assert rewards.parse(str(term)) == Reward(((1.0, term),))
    assert rewards.parse(str(rewards.parse(f"0.25*{name}"))) == 0.25 * term


@pytest.mark.parametrize("name", [name for name in MEMBERS if member(name).placebo])
def test_a_placebo_knows_nothing_of_the_completion(name: str) -> None:
    term, drawn = member(name), [TASK.problem("train", 0, n) for n in range(500)]
    for said_of in (lambda p: f"<think>1 = 1</think><answer>{p.answer}</answer>", lambda p: ""):
        scores = [term.score_group(TASK, p, [said(said_of(p))] * 4, []) for p in drawn]
        # 2,000 coins of 1/2: five standard errors are 0.056.
        assert abs(sum(map(sum, scores)) / 2000 - 0.5) < 0.056
        assert len(set(map(tuple, scores))) == 16  # equal completions have coins of their own


@pytest.mark.parametrize("name", [name for name in ALONE if not member(name).placebo])
def test_a_good_completion_scores_full_and_an_empty_one_nothing(name: str) -> None:
    assert member(name).score(TASK, PROBLEM, said(RIGHT)) == 1
    assert member(name).score(TASK, PROBLEM, said("")) == 0
    assert member(name).score(TASK, PROBLEM, said(" \n")) == 0


# Sums ------------------------------------------------------------------------------------


def test_terms_join_in_any_order() -> None:
    reward = 0.2 * Format() + Accuracy()
    assert reward == Accuracy() + Format() * 0.2 == rewards.parse("0.2*format + accuracy")
    assert str(reward) == "accuracy + 0.2*format"
    assert str(2 * reward) == "2*accuracy + 0.4*format"
    assert rewards.parse(str(2 * reward)) == 2 * reward
    assert rewards.parse("2*(accuracy + 0.2*format)") == 2 * reward


def test_scores_are_raw_and_the_total_is_weighted() -> None:
    reward = Accuracy() + 0.2 * Format()
    (scores,) = reward.score_group(TASK, PROBLEM, [said(RIGHT)], [])
    assert scores == {"accuracy": 1.0, "format": 1.0}
    assert reward.total(scores) == pytest.approx(1.2)
    assert total(reward, f"<answer>{PROBLEM.answer}</answer>") == 1.0


def test_lenient_accuracy_reads_an_unmarked_answer() -> None:
    text = f"It is {PROBLEM.answer}."
    assert total(rewards.parse("accuracy"), text) == 0
    assert total(rewards.parse("accuracy(lenient=True)"), text) == 1


def test_a_term_without_a_verdict_is_left_out_of_the_sum() -> None:
    reward = Accuracy() + 0.5 * Format()
    assert reward.total({"accuracy": math.nan, "format": 1.0}) == 0.5
    assert math.isnan(reward.total({"accuracy": math.nan, "format": math.nan}))


@pytest.mark.parametrize("case", load("weighted_reward"))
def test_weighted_reward(case: dict) -> None:
    weights = case["input"]["weights"]
    reward = Reward(tuple(zip(weights, (Accuracy(), Format()), strict=True)))
    rows = [dict(zip(("accuracy", "format"), row, strict=True)) for row in case["input"]["rewards"]]
    assert [reward.total(row) for row in rows] == pytest.approx(case["expected"])


@pytest.mark.parametrize("case", load("reward_order"))
def test_reward_order(case: dict) -> None:
    wrong = PROBLEM.answer + "1"
    texts = {
        "right+format": RIGHT,
        "right": f"<answer>{PROBLEM.answer}</answer>",
        "wrong+format": f"<think>I add.</think> <answer>{wrong}</answer>",
        "wrong": f"<answer>{wrong}</answer>",
    }
    totals = [total(Accuracy() + 0.2 * Format(), texts[name]) for name in case["input"]]
    assert totals == sorted(set(totals), reverse=True)
    assert len(totals) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy + accuracy", "accuracy is there twice"),
        ("accuracy + 2*accuracy", "accuracy is there twice"),
        ("0*accuracy", "above 0"),
        ("1e999*accuracy", "above 0"),
        ("0.2", "is a number, not one of accuracy"),
        ("accuracy + 1", "cannot be joined"),
        ("accuracy * format", "cannot be joined"),
        ("accuracy & format", "cannot be joined"),
        ("acuracy", "did you mean 'accuracy'"),
        ("accuracy(lenient=3)", "true or false"),
        ("-1*accuracy", "not allowed"),
    ],
)
def test_a_bad_expression_says_why(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rewards.parse(text)


def test_a_weight_is_a_number() -> None:
    with pytest.raises(TypeError):
        _ = Accuracy() * "2"  # type: ignore[operator]
    with pytest.raises(TypeError):
        _ = Accuracy() * True
    with pytest.raises(UserError, match="above 0"):
        _ = float("nan") * Format()


def test_every_term_is_scored_for_a_problem_without_an_answer() -> None:
    problem = Problem("none", "?", "")
    (scores,) = (Accuracy() + Format()).score_group(TASK, problem, [said("5")], [])
    assert scores["accuracy"] == 0
