"""Data sets of reasoning-gym: settings, scorers, and that no scorer runs a model's text."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from modicum import tasks
from modicum.child import Child, ChildFailed
from modicum.tasks import gym, gym_child
from modicum.tasks.base import split_of
from modicum.tasks.gym import Gym
from modicum.types import SPLITS, Problem, UserError

# Data sets that have no known answer to a problem: only their scorer knows what is right.
WITHOUT_GOLD = ("boxnet", "rush_hour")
# One data set of most categories, quick to make.
SOME = ("leg_counting", "syllogism", "spell_backward", "simple_integration",
        "graph_color", "game_of_life_halting")  # fmt: skip


def parse(expression: str) -> Gym:
    task = tasks.parse(expression)
    assert isinstance(task, Gym)
    return task


def strict(task: Gym, problem: Problem, answer: str) -> bool:
    return task.grade(problem, f"<answer>{answer}</answer>").strict


def check(name: str, count: int) -> list[str]:
    """What is wrong with the data set `name` in its first `count` problems."""
    task, again = parse(f"gym({name!r})"), parse(f"gym({name!r})")
    problems = [task.problem("train", 0, index) for index in range(count)]
    wrong: list[str] = []
    if problems != [again.problem("train", 0, index) for index in range(count)]:
        wrong.append("not the same when made again")
    for problem in problems:
        if split_of(problem.question) != "train":
            wrong.append("a problem of another split")
        if strict(task, problem, problem.answer) is (name in WITHOUT_GOLD):
            wrong.append(f"the gold {problem.answer!r} is graded otherwise than it should be")
        turned = problem.answer[::-1]
        others = [turned + "?!"] if turned != problem.answer else []
        for answer in ("", "zzz", "[]", "NaN", "[NaN, NaN]", "nani", *others):
            if strict(task, problem, answer):
                wrong.append(f"{answer!r} is right for {problem.answer!r}")
    return wrong


@pytest.mark.parametrize("name", SOME)
def test_gold_pays_and_other_texts_do_not(name: str) -> None:
    assert check(name, 3) == []


@pytest.mark.slow
def test_gold_pays_and_other_texts_do_not_in_any_data_set() -> None:
    names = gym._ask(60.0, do="describe", name="")["known"]
    assert len(names) > 90
    assert {name: wrong for name in names if (wrong := check(name, 6))} == {}


@pytest.mark.slow
def test_another_process_makes_the_same_problems_in_another_order() -> None:
    names = gym._ask(60.0, do="describe", name="")["known"]

    def made(indices: list[int]) -> dict[tuple[str, int], Problem]:
        gym.child.close()
        tried = {name: gym.variant(name)(name) for name in names}
        return {(n, i): task.problem("train", 1, i) for n, task in tried.items() for i in indices}

    assert made([0, 1, 2]) == made([2, 1, 0])


def test_settings_and_levels_shape_the_problems() -> None:
    task = parse("gym('chain_sum', min_terms=3, max_terms=3, max_digits=1)")
    assert str(task) == "gym('chain_sum', min_terms=3, max_terms=3, max_digits=1)"
    problem = task.problem("tune", 5, 0)
    assert len(problem.question.partition(": ")[2].split()) == 6
    assert problem.difficulty is None
    levels = [parse(f"gym('chain_sum', level={level})").problem("train", 0, 0) for level in (0, 4)]
    assert [p.difficulty for p in levels] == [0.0, 4.0]
    assert len(levels[0].question) < len(levels[1].question)
    assert parse("gym(chain_sum)") == parse("gym(dataset='chain_sum')")
    with pytest.raises(UserError, match=r"no argument 'max_term'; it takes dataset, level=None, m"):
        parse("gym('chain_sum', max_term=3)")
    with pytest.raises(UserError, match=r"no data set 'chain_sums'; did you mean 'chain_sum'"):
        parse("gym('chain_sums')")


def test_neighbouring_seeds_and_splits_share_no_problem() -> None:
    task = parse("gym('basic_arithmetic')")
    found = [
        {task.problem(s, seed, i).question for i in range(15)} for s in SPLITS for seed in (0, 1)
    ]
    assert len(set().union(*found)) == sum(map(len, found)) == 90


def test_scorers_that_pay_wrong_answers_are_not_asked() -> None:
    task = gym.variant("puzzle24")("puzzle24")
    problem = Problem("x", "?", "8*3*1*1", data={"numbers": (8, 3, 1, 1), "target": 24})
    assert strict(task, problem, "8*3*1*1") and not strict(task, problem, "6*4*1*1")
    task = parse("gym('coin_flip')")
    assert not strict(task, Problem("x", "?", "0.00005"), "0")
    assert strict(task, Problem("x", "?", "0.25"), "1/4")


def test_a_partial_score_is_told_and_pays_nothing() -> None:
    task = parse("gym('spell_backward')")
    problem = task.problem("train", 0, 0)
    grade = task.grade(problem, f"<answer>{problem.answer[:-1]}!</answer>")
    assert not grade.strict and not grade.lenient
    assert "has the score 0." in grade.reason


# Hostile texts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        *[("2*x**3 - x/4 + C", True), ("sin(2*x)*exp(-x)", True), ("[[1, 2], [3]]", True)],
        *[("-1.5e3", True), ("Integral(x, x)", False), ("x.__class__", False), ("x[0]", False)],
        *[("sin('1')", False), ("'a' 'b'", False), ("[y for y in x]", False), ("f'{x}'", False)],
        *[("__import__('os')", False), ("eval(x)", False), ("sin(x, y=1)", False), ("os", False)],
        *[("9**9**9", False), ("2**100000", False), ("lambda: 1", False), ("x if y else z", False)],
        *[
            ("(sin)(sin)", False),
            ("sin(x)(y)", False),
            ("x y", False),
            ("(" * 500, False),
            ("", False),
        ],
        *[("x := 1", False), ("x\n__import__('os')", False), ("True", False), ("x % 2", False)],
    ],
)
def test_only_plain_arithmetic_comes_to_a_scorer_that_evaluates(text: str, allowed: bool) -> None:
    assert gym_child.plain(text, gym_child.EVALUATED["simple_integration"]) is allowed


def test_what_is_no_expression_may_be_compared_but_not_parsed_by_sympy() -> None:
    entry = {"answer": "gold text"}
    board = "_ Q _\nQ _ _"
    for name, text, shown in [
        ("n_queens", board, True),
        ("n_queens", " \t open('x')", False),
        ("n_queens", "\nopen('x')\n", False),
        ("n_queens", "gold text", True),
        ("polynomial_multiplication", board, False),
        ("polynomial_multiplication", "5!", False),
        ("chain_sum", "open('x')", True),  # its scorer only compares
        ("chain_sum", "-inf", False),
        ("chain_sum", "information", True),
    ]:
        assert gym_child.harmless(name, text, entry) is shown, (name, text)


def test_no_scorer_runs_the_text(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for name in ("simple_integration", "polynomial_multiplication", "binary_matrix"):
        task = parse(f"gym({name!r})")
        problem = task.problem("train", 0, 0)
        for code in ("open({!r}, 'w')", "__import__('os').mkdir({!r})", "sin(\"open({!r}, 'w')\")"):
            assert not strict(task, problem, code.format(str(target)))
    assert not target.exists()


def test_an_answer_without_a_score_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    task = parse("gym('chain_sum')")
    problem = task.problem("train", 0, 0)

    def fail(*args: object, **request: object) -> None:
        raise ChildFailed("no reply within 5 s")

    monkeypatch.setattr(gym, "_ask", fail)
    grade = task.grade(problem, f"<answer>{problem.answer}</answer>")
    assert (grade.strict, grade.lenient) == (False, False)
    assert grade.reason == (
        "the marked answer has no score: the scorer failed: no reply within 5 s"
    )
    assert "longer than" in task.grade(problem, f"<answer>{'1' * 30_000}</answer>").reason
    with pytest.raises(UserError, match="no problem could be made: no reply"):
        task.problem("train", 0, 1)


@pytest.mark.slow
def test_a_scorer_that_hangs_costs_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    task = parse("gym('chain_sum')")
    problem = task.problem("train", 0, 0)
    child = gym.child
    assert child.process is not None
    os.kill(child.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(gym, "SCORE_SECONDS", 0.3)
    began = time.perf_counter()
    grade = task.grade(problem, f"<answer>{problem.answer}</answer>")
    assert time.perf_counter() - began < 3 and not grade.strict
    assert "no reply within 0.3 s" in grade.reason
    monkeypatch.undo()
    assert strict(task, problem, problem.answer)


def test_a_helper_process_that_dies_is_replaced(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys, time\nprint(json.dumps({'value': True}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    if 'die' in line: sys.exit(3)\n"
        "    if 'hang' in line: time.sleep(60)\n"
        "    print(line.strip(), flush=True)\n"
    )
    child = Child(str(script))
    assert child.ask({"a": "\ud800"}, 10) == {"a": "\ud800"}
    first = child.process
    with pytest.raises(ChildFailed, match="has ended"):
        child.ask({"die": 1}, 10)
    assert child.ask({"a": 2}, 10) == {"a": 2}
    assert child.process is not first
    with pytest.raises(ChildFailed, match=r"no reply within 0.2 s"):
        child.ask({"hang": 1}, 0.2)
    assert child.process is None and child.ask({"a": 3}, 10) == {"a": 3}
    child.close()


# What the installed package does ---------------------------------------------------------


@pytest.mark.slow
def test_every_scorer_that_evaluates_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.factory import DATASETS

    found = {name for name, (cls, _) in DATASETS.items() if gym_child.evaluates(cls)}
    assert set(gym_child.EVALUATED) <= found <= {*gym_child.EVALUATED, *gym_child.OWN}
    monkeypatch.setattr(gym_child, "EVALUATED", {})
    assert "not allowed" in gym_child.describe("n_queens")["fault"]
