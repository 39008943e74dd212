"""Reward functions of the user's own: how they are called, named, and kept from doing harm."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum import rewards, runs
from modicum.rewards import Reward
from modicum.rewards.function import rewrite
from modicum.tasks.arithmetic import Arithmetic
from modicum.training.loop import Observer, train
from modicum.training.metrics import rollout_metrics
from modicum.types import Completion, Group, Problem, UserError

PROBLEM = Problem("p", "What is 3+4?", "7", data={"solution": "3+4 = 7", "terms": (3, 4)})

# The module of a user, imported from the current directory.
MODULE = '''
print("a module that prints")

class Limit(BaseException):
    """Like those of libraries for time limits."""

def by_rank(prompts, completions, completion_ids, trainer_state, **columns):
    """Compares the completions of a group; sees all that TRL gives."""
    assert prompts == ["What is 3+4?"] * len(completions) == columns["question"]
    assert columns["answer"] == columns["ground_truth"] == ["7"] * len(completions)
    assert columns["solution"][0] == "3+4 = 7" and columns["terms"][-1] == (3, 4)
    assert trainer_state is None and completion_ids[0] == [5, 6]
    print("a function that prints")
    return [sorted(completions).index(text) / 4 for text in completions]

def chat(prompts, completions):
    assert prompts[0] == [{"role": "user", "content": "What is 3+4?"}]
    assert [message["role"] for (message,) in completions] == ["assistant"] * len(completions)
    return [len(message["content"]) for (message,) in completions]

async def later(completions):
    return [1 for _ in completions]

def some(completions, **columns):
    return [None if "no" in text else 1.0 for text in completions]

def fragile(completions, **columns):
    if "c" in completions:
        raise Limit("too\\nslow")
    return [0.5] * len(completions)

def short(completions):
    return [1.0]

def long(completions):
    return [1.0, 2.0, 3.0]

def by_place(completions, /):
    return [1.0] * len(completions)

def endless(completions):
    return [float("inf")] * len(completions)

def words(completions):
    return ["good"] * len(completions)

def needs(completions, level, style="x"):
    return [0.0] * len(completions)

class Kept:
    @staticmethod
    def method(completions):
        return [0.25] * len(completions)

number = 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with the user's modules in it."""
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import math\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    yield tmp_path
    for name in ("own_rewards", "broken_rewards"):
        sys.modules.pop(name, None)


def scores(text: str, *texts: str) -> tuple[list[float], list[str]]:
    """The scores of a term for a group of completions, and its faults."""
    reward, faults = rewards.parse(text), []
    group = [Completion((5, 6), (0.0, 0.0), text, True) for text in texts]
    rows = reward.score_group(Arithmetic(), PROBLEM, group, faults)
    return [value for row in rows for value in row.values()], faults


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("term", "wanted"),
    [
        ("own_rewards:by_rank", [0.25, 0.0, 0.5]),
        ("own_rewards:chat(chat=True)", [1, 1, 1]),
        ("function('own_rewards:later')", [1, 1, 1]),
        ("own_rewards:Kept.method()", [0.25, 0.25, 0.25]),
    ],
)
def test_functions_for_trl_work_unchanged(
    term: str, wanted: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert scores(term, "b", "a", "c") == (wanted, [])
    assert capsys.readouterr().out == "", "what it prints must not mix with --json"


@pytest.mark.usefixtures("here")
def test_none_is_no_verdict() -> None:
    values, faults = scores("own_rewards:some", "a", "no")
    assert values[0] == 1
    assert math.isnan(values[1])
    assert faults == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "wanted", "fault"),
    [
        # SEC-09: the one that fails gets 0, whatever the exception derives from.
        ("fragile", [0.5, 0.5, 0, 0.5], "own_rewards:fragile: Limit: too slow"),
        ("endless", [0] * 4, "own_rewards:endless: returned an infinite score"),
        ("words", [0] * 4, "own_rewards:words: ValueError: could not convert"),
    ],
)
def test_a_completion_that_fails_gets_0(name: str, wanted: list[float], fault: str) -> None:
    values, faults = scores(f"own_rewards:{name}", "a", "b", "c", "d")
    assert values == wanted
    assert len(faults) == wanted.count(0)
    assert faults[0].startswith(fault)
    assert "\n" not in faults[0]


@pytest.mark.usefixtures("here")
def test_a_list_of_another_length_is_a_fault() -> None:
    # For one completion it is right; for two the scores cannot be told apart.
    assert scores("own_rewards:short", "a") == ([1.0], [])
    assert rewards.parse("own_rewards:short") == rewards.parse("function('own_rewards:short')")
    values, faults = scores("own_rewards:short", "a", "b")
    fault = "own_rewards:short: returned 1 scores for 2 completions"
    assert (values, faults) == ([0.0, 0.0], [fault, fault])
    with pytest.raises(UserError, match="returned 3 scores for 1 completion"):
        scores("own_rewards:long", "a")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere:f", "cannot import 'nowhere' .ModuleNotFoundError"),
        ("broken_rewards:f", "cannot import 'broken_rewards' .ZeroDivisionError"),
        ("own_rewards:chatt", "no 'chatt'; did you mean 'chat'"),
        ("own_rewards:Kept.x", "no 'Kept.x'"),
        ("own_rewards:number", "'number' is a int, not a function"),
        ("function('own_rewards')", "write package.module:function"),
        ("function(3)", "must be a text"),
        ("own_rewards:", "does not parse"),
        ("own_rewards:chat(chats=True)", "no argument 'chats'"),
        ("own_rewards:chat + own_rewards:chat", "is there twice"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        rewards.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("here")
def test_a_missing_column_is_named() -> None:
    """DYN-08: a reward that lacks its gold stops; it does not return a constant."""
    with pytest.raises(UserError, match="the problems have no column 'level'; known are answer"):
        scores("own_rewards:needs", "a")
    with pytest.raises(UserError, match="'completions' is positional-only; arguments go by name"):
        scores("own_rewards:by_place", "a")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("accuracy + 0.5*own_rewards:chat", "accuracy + 0.5*own_rewards:chat"),
        ("2*(own_rewards:chat( chat = True )+format)", "2*format + 2*own_rewards:chat(chat=True)"),
        ("function('own_rewards:Kept.method')", "own_rewards:Kept.method"),
        ("language('zh') + own_rewards:later()", "language(lang='zh') + own_rewards:later"),
    ],
)
def test_expressions_with_functions_round_trip(text: str, shown: str) -> None:
    reward = rewards.parse(text)
    assert isinstance(reward, Reward)
    assert str(reward) == shown
    assert rewards.parse(shown) == reward


def test_what_stands_in_quotes_is_left_alone() -> None:
    text = """f('a:b', "c.d:e") + language('en')"""
    assert rewrite(text) == text


def test_metrics_leave_out_what_has_no_verdict() -> None:
    nan = math.nan
    said = Completion((1,), (0.0,), "", True)
    groups = [Group(PROBLEM, (1,), (said, said, said))] * 3
    totals = torch.tensor([[-1.0, nan, -1.0], [nan, 0.0, 1.0], [nan, nan, nan]])
    scores = [[{"own:f": r, "own:g": nan} for r in row] for row in totals.tolist()]
    found = rollout_metrics(0, groups, scores, totals)
    assert found["reward/mean"] == found["reward/own:f"] == -0.25
    assert "reward/own:g" not in found
    assert found["groups/no_signal"] == pytest.approx(2 / 3)


@pytest.mark.usefixtures("here")
def test_a_run_counts_what_fails_and_goes_on(quick: Any) -> None:
    class Listener(Observer):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    Path("own_rewards.py").write_text(
        "def half(completions, **columns):\n"
        "    if len(completions) > 1:\n"
        "        raise OSError('no judge')\n"
        "    if completions[0] == '' or ord(completions[0][0]) % 2:\n"
        "        raise OSError('no judge')\n"
        "    return [None]\n"
    )
    held = replace(quick.evaluation, eval_problems=0)
    config = replace(quick, steps=1, reward="digits + own_rewards:half", evaluation=held)
    listener = Listener()
    train(config, listener)
    (line,) = runs.read_lines(Path(config.out) / "metrics.jsonl")
    assert 0 < line["reward/errors"] < 8
    assert line["reward/own_rewards:half"] == 0, "a mean of those that have a verdict"
    (note,) = [n for n in listener.notes if "own_rewards" in n]
    assert note == f"step 1: {line['reward/errors']} scores failed and are 0" + (
        " (own_rewards:half: OSError: no judge)"
    )
    text = (Path(config.out) / "samples.jsonl").read_text()
    assert "NaN" not in text
    assert '"own_rewards:half": null' in text
