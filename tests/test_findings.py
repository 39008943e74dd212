"""What looks wrong with a rollout, for rollouts written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modicum import findings, rewards, tasks
from modicum.config import Held, Sampling, Steps, TrainConfig
from modicum.findings import JudgedGroups
from modicum.types import Completion, Group, Problem

GOOD, BAD = "<think> 2+3=5 </think> <answer> 5 </answer>", "<answer> 6 </answer>"
PROBLEM = Problem("sums/train/0", "What is 2+3?", "5")


def rollout(
    *texts: str, reward: str = "accuracy", cut: bool = False, apart: bool = True
) -> JudgedGroups:
    """One group of completions; with `apart` their tokens differ."""
    completions = tuple(
        Completion((number * apart,), (-0.1,), text, not cut) for number, text in enumerate(texts)
    )
    groups, faults = [Group(PROBLEM, (1, 2), completions)], list[str]()
    task, made = tasks.parse("arithmetic"), rewards.parse(reward)
    scores = [made.score_group(task, PROBLEM, completions, faults)]
    return findings.judged(task, made, groups, scores)


def told(
    groups: JudgedGroups, form: str = "chat", room: int = 10_000, **sampling: Any
) -> list[str]:
    """What is found and what to change, for a config whose reward is `accuracy`."""
    config = replace(TrainConfig(), sampling=replace(Sampling(), **sampling))
    signals = sum(len({trial.total for trial in group}) > 1 for group in groups)
    return [f"{f.what} -> {f.change}" for f in findings.wrong(config, groups, signals, form, room)]


@pytest.mark.parametrize(
    ("groups", "sampling", "expected"),
    [
        (rollout(GOOD, BAD), {}, []),
        (rollout(GOOD, BAD, "", cut=True), {},
         ["completions go on after their answer -> --stop '</answer>' ends them"]),
        (rollout(r"\boxed{5} and", r"\boxed{6} and", cut=True), {"style": "boxed"},
         ["completions go on after their answer -> --stop $'\\n\\n' ends them"]),
        (rollout("2+3 is", "let me see", cut=True), {"max_tokens": 50},
         ["completions are cut at max_tokens = 50 -> --max-tokens 200"]),
        (rollout("2+3 is", "let me see", cut=True), {"max_tokens": 50, "room": 90},
         ["completions are cut at max_tokens = 50 -> --max-tokens 90"]),
        (rollout("2+3 is", "let me see", cut=True), {"max_tokens": 50, "room": 50},
         ["completions are cut at max_tokens = 50 -> the model has positions for no more: shorter"
          " prompts, or an easier task"]),
        (rollout("It is 5", "It is 6"), {},
         ["right answers are not marked, so they earn nothing -> --examples 2 shows how, or --reward"
          " 'accuracy(lenient=True)' pays for them"]),
        (rollout("It is 5", "It is 6"), {"examples": 2},
         ["right answers are not marked, so they earn nothing -> --reward 'accuracy(lenient=True)'"
          " pays for them"]),
        (rollout("It is 5", "It is 6"), {"template": "plain"},
         ["right answers are not marked, so they earn nothing -> --template r1_zero asks for a mark,"
          " or --reward 'accuracy(lenient=True)' pays for them"]),
        (rollout("It is 5", "It is 6"), {"style": "none"},
         ["right answers are not marked, so they earn nothing -> --style tags asks for a mark, or"
          " --reward 'accuracy(lenient=True)' pays for them"]),
        (rollout("It is 5", "It is 6", reward="accuracy(lenient=True)"), {}, []),
        (rollout("It is 5", "It is 6", reward="accuracy + 0.3*accuracy(lenient=True)"), {},
         ["the term accuracy is the same for all completions and teaches nothing -> leave it out, or"
          " ask for what it pays for (--style, --system, --examples)"]),
        (rollout(BAD, "It is 7"), {},
         ["no answer is right -> --examples 2 shows how, or an easier task, a stronger model,"
          " --group-size 16"]),
        (25 * rollout(BAD, "It is 7") + rollout("It is 5", BAD), {"examples": 1},
         ["hardly any answer is right -> an easier task, a stronger model, --group-size 16"]),
        (rollout(GOOD, GOOD), {},
         ["nearly all is right already -> a harder task (more terms, a higher level)"]),
        (rollout(BAD, BAD, apart=False), {"temperature": 0.2, "examples": 2},
         ["no answer is right -> an easier task, a stronger model, --group-size 16",
          "all completions are the same in 1 of 1 groups -> --temperature 1"]),
        (rollout(GOOD, BAD, reward="length(100)"), {},
         ["the reward tells no two completions of a group apart -> a reward that does (modicum"
          " audit-reward tries one)"]),
        (rollout(GOOD, BAD, reward="accuracy + 0.2*format(style='boxed')"), {},
         ["the term format(style='boxed') is the same for all completions and teaches nothing ->"
          " leave it out, or ask for what it pays for (--style, --system, --examples)"]),
        (rollout("It is 5", BAD, reward="length(100)", cut=True), {"max_tokens": 9},
         ["completions are cut at max_tokens = 9 -> --max-tokens 36"]),
        (rollout(BAD, BAD) + rollout(GOOD, GOOD), {},
         ["the reward tells no two completions of a group apart -> a reward that does (modicum"
          " audit-reward tries one), or --group-size 16"]),
        (rollout("It is 5", "It is 6", reward="length(100)"), {},
         ["the reward tells no two completions of a group apart -> a reward that does (modicum"
          " audit-reward tries one)"]),
        (rollout(BAD, BAD, apart=False) + rollout(GOOD, GOOD, apart=False), {"top_k": 1},
         ["all completions are the same in 2 of 2 groups -> --top-k 0 --top-p 1"]),
        (rollout(GOOD, BAD) + 4 * rollout(BAD, BAD), {},
         ["few groups have a signal -> --group-size 16, --groups refill, or problems of another difficulty"]),
    ],
)  # fmt: skip
def test_what_looks_wrong(
    groups: JudgedGroups, sampling: dict[str, Any], expected: list[str]
) -> None:
    template = "plain" if sampling.get("template") == "plain" else "chat"
    assert told(groups, template, sampling.pop("room", 10_000), **sampling) == expected


def test_a_base_without_a_chat_template_is_named() -> None:
    (line,) = told(rollout(BAD, "It is 7"), "r1_zero")
    assert line.startswith("no answer is right: the tokenizer has no chat template, so the prompt")
    (line,) = told(rollout(BAD, "It is 7"), "r1_zero", template="r1_zero")
    assert line.startswith("no answer is right ->"), "it was asked for"


def test_the_evidence_counts_and_shows_one() -> None:
    (found,) = findings.wrong(TrainConfig(), rollout("It is 5", "It is 6", "It is 7"), 0, "chat")
    assert str(found) == (
        "right answers are not marked, so they earn nothing (1 of 3 completions; to 'What is 2+3?',"
        " gold '5', it wrote 'It is 5'); --examples 2 shows how, or --reward"
        " 'accuracy(lenient=True)' pays for them"
    )
    (found,) = findings.wrong(TrainConfig(), rollout("x " * 200, "y"), 0, "chat")
    assert "x x x  ...  x x x" in str(found)
    assert len(found.evidence) < 180


@pytest.mark.parametrize(
    ("text", "style", "cut", "why"),
    [
        (GOOD, "tags", False, "the marked answer is right: '5'"),
        (BAD, "tags", False, "the marked answer is wrong: '6'; lacks <think> </think>"),
        ("It is 5", "boxed", False, r"unmarked; what was read is right: '5'; lacks \boxed"),
        ("so", "hashes", True, "there is no answer; cut at max_tokens; lacks ####"),
        ("<answer></answer>", "none", False, "the marked answer is empty: ''"),
        (f"Well. {GOOD}", "tags", False, "the marked answer is right: '5'; not in the form of 'tags'"),
    ],
)  # fmt: skip
def test_the_reasons_of_a_verdict(text: str, style: str, cut: bool, why: str) -> None:
    ((trial,),) = rollout(text, cut=cut)
    assert trial.reasons(style) == why


def test_sizes_of_splits_that_are_too_small() -> None:
    rows = [{"question": f"{n}?", "answer": n} for n in range(9)]
    task = tasks.of({"train": rows[:6], "test": rows[6:]})
    config = replace(TrainConfig(), batch=Steps(prompts_per_step=8))
    some = [f"{f.what} ({f.evidence})" for f in findings.of_data(task, config)]
    size = task.size("train")
    assert some == [
        f"a step draws problems twice ({size} problems for 8 draws)",
        "few held-out problems, so intervals will be wide (3 in the split test)",
    ]
    config = replace(config, batch=Steps(prompts_per_step=2), evaluation=Held(eval_problems=0))
    assert list(findings.of_data(task, config)) == []
    assert list(findings.of_data(tasks.parse("arithmetic"), TrainConfig())) == []


def test_the_reward_to_paste_pays_for_unmarked_answers() -> None:
    config = replace(TrainConfig(), reward="2*accuracy + 0.1*accuracy.py:accuracy")
    (found,) = findings.wrong(config, rollout("It is 5", "It is 6"), 0, "chat")
    assert "--reward '2*accuracy(lenient=True) + 0.1*accuracy.py:accuracy'" in found.change
