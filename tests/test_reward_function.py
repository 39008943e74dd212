"""Reward functions of the user's own: how they are called, named, and kept from doing harm."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum import rewards, runs
from modicum.rewards import Reward, source
from modicum.rewards.source import rewrite
from modicum.tasks.arithmetic import Arithmetic
from modicum.training.loop import Observer, train
from modicum.training.metrics import rollout_metrics
from modicum.training.rollout import Rollout
from modicum.types import Completion, Group, Problem, RunStopped, UserError

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
    assert (trainer_state.global_step, trainer_state.epoch) == (0, 0)
    assert completion_ids[0] == [5, 6]
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

def mean(completions, **columns):
    """One number for the group, which alone would be another one for each."""
    return [sum(map(len, completions)) / len(completions)]

def whole(completions):
    return [4.0 if len(completions) == 1 else 1 / 0]

def none(completions):
    return (score for score in [])

def text(completions):
    return "1" * len(completions)

def mapping(completions):
    return dict.fromkeys(range(len(completions)), 1.0)

def one(completions):
    return 0.5

def a_set(completions):
    return {0.0, 1.0}

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

# A file of a user, in a folder of its own.
FILE = """
from dataclasses import dataclass
from functools import partial, wraps
from beside_mine import FACTOR

@dataclass(frozen=True)
class Scorer:
    size: float = 1.0

    @classmethod
    def built(cls, completions):
        return [cls().size] * len(completions)

    def __call__(self, completions):
        return [self.size] * len(completions)

def logged(function):
    @wraps(function)
    def inner(*args, **named):
        return function(*args, **named)
    return inner

@logged
def doubled(completions, **columns):
    return [float(FACTOR * len(text)) for text in completions]

def scaled(completions, by):
    return [by * len(text) for text in completions]

tripled = partial(scaled, by=3.0)
four = Scorer(4.0)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with the user's modules in it."""
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import math\n1 / 0\n")
    (tmp_path / "sub dir").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub dir" / "sole.py").touch()
    (tmp_path / "sub" / "bad.py").write_text("def f(:\n")
    for folder, factor in (("sub", 2), ("sub dir", 3)):
        (tmp_path / folder / "beside_mine.py").write_text(f"FACTOR = {factor}\n")
        (tmp_path / folder / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    # What runs of other tests read stays theirs.
    others = {"", ".", *map(str, source.HOMES)}
    monkeypatch.setattr(source, "HOMES", set())
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in others])
    for name in ("mine", "beside_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("own_rewards", "broken_rewards", "beside_mine"):
        sys.modules.pop(name, None)
        source.READ.pop(name, None)


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
        # SEC-09: whatever the exception derives from. Nobody asks again, one by one.
        ("fragile", [0] * 4, "own_rewards:fragile: Limit: too slow"),
        ("fragile(each=True)", [0.5, 0.5, 0, 0.5], "own_rewards:fragile(each=True): Limit: too"),
        ("mean", [0] * 4, "own_rewards:mean: returned 1 scores for 4 completions"),
        ("whole(each=True)", [4.0] * 4, ""),
        ("endless", [0] * 4, "own_rewards:endless: returned an infinite score"),
        ("words", [0] * 4, "own_rewards:words: ValueError: could not convert"),
        ("short", [0] * 4, "own_rewards:short: returned 1 scores for 4 completions"),
        ("short(each=True)", [1.0] * 4, ""),
        ("long(each=True)", [0] * 4, "own_rewards:long(each=True): returned 3 scores for 1 comp"),
        ("none", [0] * 4, "own_rewards:none: returned 0 scores for 4 completions"),
    ],
)
def test_a_call_that_fails_gets_0(name: str, wanted: list[float], fault: str) -> None:
    values, faults = scores(f"own_rewards:{name}", "a", "b", "c", "dddd")
    assert values == wanted
    assert len(faults) == wanted.count(0)
    assert all(found.startswith(fault) and "\n" not in found for found in faults)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["text", "mapping", "one", "a_set"])
def test_what_is_no_list_stops(name: str) -> None:
    with pytest.raises(UserError, match=f"own_rewards:{name}: the function returned .*, no list"):
        scores(f"own_rewards:{name}", "a", "b")


@pytest.mark.usefixtures("here")
def test_a_completion_by_itself_is_a_group_of_one() -> None:
    term = rewards.Function("own_rewards:short")
    said = Completion((5,), (0.0,), "a", True)
    assert term.score(Arithmetic(), PROBLEM, said) == 1.0
    assert rewards.parse("own_rewards:short") == rewards.parse("function('own_rewards:short')")
    with pytest.raises(UserError, match="own_rewards:long: returned 3 scores for 1 completion"):
        rewards.Function("own_rewards:long").score(Arithmetic(), PROBLEM, said)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere:f", "cannot import 'nowhere' .ModuleNotFoundError"),
        ("own_rewards:number.x", "no 'number.x'"),
        ("broken_rewards:f", "cannot import 'broken_rewards' .ZeroDivisionError"),
        ("own_rewards:chatt", "no 'chatt'; did you mean 'chat'"),
        ("own_rewards:Kept.x", "no 'Kept.x'"),
        ("own_rewards:number", "'number' is no function but 3"),
        ("function('own_rewards')", "write package.module:function"),
        ("function(3)", "must be a text"),
        ("own_rewards:", "does not parse"),
        ("own_rewards:chat(chats=True)", "no argument 'chats'"),
        ("own_rewards:chat + own_rewards:chat", "is there twice"),
        ("accuracy + sub/mine.py", "reward: sub/mine.py is no function; write path/to/file.py:f"),
        ("0.5*sub/mine:f", "reward: sub/mine:f is no function; write path/to/file.py:function"),
        ("none/one.py:f", "there is no file none/one.py"),
        ("sub/mine.py:double", "the module has no 'double'; did you mean 'doubled'"),
        ("sub/bad.py:f", r"cannot import 'sub/bad.py' .SyntaxError"),
        ("mine:doubled", r"cannot import 'mine' .*; a file is named by its path: sub/mine.py:doub"),
        ("sole:f", r"a file is named by its path: function\('sub dir/sole.py:f'\)$"),
        ("nowhere:f", r"a file is named by its path: path/to/nowhere.py:f"),
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
    found = rollout_metrics(0, Rollout(groups, scores, totals))
    assert found["reward/mean"] == found["reward/own:f"] == -0.25
    assert "reward/own:g" not in found
    assert found["groups/no_signal"] == pytest.approx(2 / 3)


# Files -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "shown", "wanted"),
    [
        ("sub/mine.py:doubled", "sub/mine.py:doubled", 6.0),
        ("./sub/mine.py:doubled()", "./sub/mine.py:doubled", 6.0),
        ("function('sub dir/mine.py:doubled')", "function('sub dir/mine.py:doubled')", 9.0),
        ("function('sub dir/mine.py:tripled')", "function('sub dir/mine.py:tripled')", 9.0),
        ("~/sub/mine.py:four", "~/sub/mine.py:four", 4.0),
        ("sub/../sub/mine.py:Scorer.built", "sub/../sub/mine.py:Scorer.built", 1.0),
        ("sub/mine.py:doubled(each=True)", "sub/mine.py:doubled(each=True)", 6.0),
        ('function("sub dir/mine.py:four", each=true)', "", 4.0),
    ],
)
def test_a_function_of_a_file(
    text: str, shown: str, wanted: float, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert scores(text, "abc", "abc") == ([wanted, wanted], [])
    reward = rewards.parse(text)
    assert str(reward) == (shown or "function('sub dir/mine.py:four', each=True)")
    assert rewards.parse(str(reward)) == reward


@pytest.mark.usefixtures("here")
def test_files_with_others_of_one_name_beside_them() -> None:
    both = rewards.parse("function('sub dir/mine.py:doubled') + sub/mine.py:doubled")
    (found,) = both.score_group(Arithmetic(), PROBLEM, [said("ab")], [])
    assert list(found.values()) == [6.0, 4.0]


def test_imports_of_others_find_what_they_found(here: Path) -> None:
    sys.path.insert(0, str(here / "sub"))
    before = list(sys.path)
    assert scores("sub/mine.py:doubled", "ab") == ([4.0], [])
    assert sys.path[: len(before)] == before
    rewards.parse("function('sub dir/mine.py:doubled')")
    assert sys.path[: len(before)] == before
    assert str(here / "sub dir") in sys.path


@pytest.mark.usefixtures("here")
def test_files_in_sums(here: Path) -> None:
    text = f"0.5*./sub/mine.py:doubled+accuracy + 2*({here}/sub/mine.py:four( each = True ))"
    shown = f"2*{here}/sub/mine.py:four(each=True) + accuracy + 0.5*./sub/mine.py:doubled"
    assert str(rewards.parse(text)) == shown
    assert scores(text, "ab") == ([4.0, 0.0, 4.0], [])


def test_a_relative_file_leads_from_other_folders_too(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "else").mkdir()
    monkeypatch.chdir(here / "else")
    with pytest.raises(UserError, match=r"there is no file sub/mine\.py"):
        rewards.parse("sub/mine.py:four")
    reward = rewards.parse("sub/mine.py:four + own_rewards:later", [Path(), here])
    assert str(reward) == "own_rewards:later + sub/mine.py:four"
    assert reward.score_group(Arithmetic(), PROBLEM, [said("a")], []) == [
        {"own_rewards:later": 1.0, "sub/mine.py:four": 4.0}
    ]


def said(text: str) -> Completion:
    return Completion((5,), (0.0,), text, True)


def test_an_edited_file_is_read_anew(here: Path) -> None:
    """Also when the text is as long and as old as before: its bytecode would be taken."""
    for name, file in (("own_rewards:some", "own_rewards.py"), ("sub/mine.py:four", "sub/mine.py")):
        path = here / file
        first = rewards.parse(name)
        assert scores(name, "a") == ([{"own_rewards:some": 1.0}.get(name, 4.0)], [])
        before, times = path.read_text(), path.stat()
        path.write_text(before.replace("else 1.0", "else 7.0").replace("(4.0)", "(7.0)"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        group = [said("a")]
        assert list(first.score_group(Arithmetic(), PROBLEM, group, [])[0].values()) != [7.0]
        assert scores(name, "a") == ([7.0], [])
        path.write_text(before + "\n1 / 0\n")
        with pytest.raises(UserError, match=r"cannot import .*ZeroDivisionError"):
            rewards.parse(name)
        path.write_text(before)
        assert scores(name, "a") != ([7.0], [])


def test_what_an_edited_file_imports_from_beside_it_is_read_anew(here: Path) -> None:
    assert scores("sub/mine.py:doubled", "ab") == ([4.0], [])
    (here / "sub" / "beside_mine.py").write_text("FACTOR = 5\n")
    assert scores("sub/mine.py:doubled", "ab") == ([10.0], [])


def test_an_edited_module_that_is_only_near_stays(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "near.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(here)
    near = importlib.import_module("near")
    assert scores("own_rewards:short", "a") == ([1.0], [])
    (here / "near.py").write_text("x = 2\n")
    (here / "own_rewards.py").write_text(MODULE.replace("return [1.0]\n", "return [2.0]\n"))
    assert scores("own_rewards:short", "a") == ([2.0], [])
    assert sys.modules["near"] is near
    monkeypatch.delitem(sys.modules, "near")


# Runs ------------------------------------------------------------------------------------


class Listener(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.usefixtures("here")
def test_a_run_counts_what_fails_and_goes_on(bare: Any) -> None:
    Path("own_rewards.py").write_text(
        "def half(completions, **columns):\n"
        "    if completions[0] == '' or ord(completions[0][0]) % 2:\n"
        "        raise OSError('no judge')\n"
        "    return [None]\n"
    )
    config = replace(bare, steps=1, reward="digits + own_rewards:half(each=True)")
    listener = Listener()
    train(config, listener)
    (line,) = runs.read_lines(Path(config.out) / "metrics.jsonl")
    assert 0 < line["reward/errors"] < 8
    assert line["reward/own_rewards:half(each=True)"] == 0, "a mean of those that have a verdict"
    (note,) = [n for n in listener.notes if "own_rewards" in n]
    assert note == f"step 1: {line['reward/errors']} scores failed and are 0" + (
        " (own_rewards:half(each=True): OSError: no judge)"
    )
    text = (Path(config.out) / "samples.jsonl").read_text()
    assert "NaN" not in text
    assert '"own_rewards:half(each=True)": null' in text


def test_a_run_ends_where_a_reward_fails_for_all_and_goes_on_when_it_is_mended(
    here: Path, bare: Any
) -> None:
    file = here / "own_rewards.py"
    whole = (
        "def size(completions, trainer_state):\n"
        "    return [len(text) / 9 for text in completions]\n"
    )
    broken = whole + "    undefined\n"
    file.write_text(
        broken.replace("return", "trainer_state.global_step < 3 or unknown\n    return")
    )
    config = replace(bare, reward="digits + own_rewards:size")
    with pytest.raises(RunStopped) as stopped:
        train(config)
    assert str(stopped.value) == (
        "reward own_rewards:size: NameError: name 'unknown' is not defined, for all 8 completions"
        " of a step; once that is mended, --resume goes on from the last checkpoint"
    )
    assert len(runs.read_lines(Path(config.out) / "metrics.jsonl")) == 3
    file.write_text(whole)
    listener = Listener()
    train(config, listener, resume=True)
    assert len(runs.read_lines(Path(config.out) / "metrics.jsonl")) == 4
    assert any("has changed since the run began" in note for note in listener.notes)
    file.write_text(whole.replace("return", "return unknown or"))
    with pytest.raises(RunStopped, match="NameError: name 'unknown'"):
        train(config, overwrite=True)


@pytest.mark.parametrize("objective", ["grpo", "ppo(warmup=1)"])
def test_a_function_knows_the_step_and_logs(here: Path, bare: Any, objective: str) -> None:
    (here / "own_rewards.py").write_text(
        "def f(completions, trainer_state, log_metric, log_extra, **columns):\n"
        "    log_metric('step', trainer_state.global_step)\n"
        "    log_metric('bad', float('nan'))\n"
        "    log_metric('max', trainer_state.max_steps)\n"
        "    log_extra('length', [len(text) for text in completions])\n"
        "    log_extra('what', [{1}, None, float('nan'), 'x'])\n"
        "    return [trainer_state.epoch for text in completions]\n"
    )
    config = replace(bare, steps=2, reward="digits + own_rewards:f", objective=objective)
    train(config)
    first, second = runs.read_lines(Path(config.out) / "metrics.jsonl")
    assert (first["user/step"], first["user/max"], first["reward/own_rewards:f"]) == (0, 2, 0)
    assert (second["user/step"], second["reward/own_rewards:f"]) == (1, 0.5)
    assert "user/bad" not in first
    lines = runs.read_lines(Path(config.out) / "samples.jsonl")[:4]
    assert [line["logged"]["length"] for line in lines] == [len(x["completion"]) for x in lines]
    assert [line["logged"]["what"] for line in lines] == ["{1}", None, "nan", "x"]


def test_a_column_of_another_length_is_a_fault(here: Path) -> None:
    (here / "own_rewards.py").write_text(
        "def f(completions, log_extra):\n    log_extra('x', [1])\n    return [1.0, 1.0]\n"
    )
    fault = "own_rewards:f: ValueError: log_extra('x'): 1 values for 2 completions"
    assert scores("own_rewards:f", "a", "b") == ([0.0, 0.0], [fault, fault])


@pytest.mark.usefixtures("here")
def test_a_path_with_blanks_alone_needs_no_quotes() -> None:
    reward = rewards.parse(" sub dir/mine.py:doubled ")
    assert str(reward) == "function('sub dir/mine.py:doubled')"
    assert rewards.parse(str(reward)) == reward


@pytest.mark.usefixtures("here")
def test_a_function_that_ends_the_program_fails() -> None:
    Path("ends.py").write_text("import sys\ndef f(completions):\n    sys.exit(0)\n")
    assert scores("ends.py:f", "a", "b") == ([0.0, 0.0], ["ends.py:f: SystemExit: 0"] * 2)


def test_a_column_that_is_missing_is_found_before_a_model_is_loaded() -> None:
    def needs(completions: list[str], steps: list[str]) -> list[float]:
        return [1.0] * len(completions)

    reward = rewards.of(needs)
    (term,) = (term for _, term in reward.terms)
    term.require(Problem("p", "?", "1", data={"steps": "1"}))
    with pytest.raises(UserError, match="no column 'steps'"):
        term.require(PROBLEM)
