"""The contract that every task keeps, and what is special to each.

A new member of TASKS is tested by itself, at its default expression or the one in EXAMPLES.
"""

from __future__ import annotations

import ast
import itertools
import json
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from modicum.tasks import TASKS, Task, parse
from modicum.tasks.arithmetic import Arithmetic, evaluate
from modicum.tasks.base import Draft, draw, split_of
from modicum.tasks.countdown import Countdown
from modicum.types import SPLITS, Problem, Split, UserError

GSM8K = Path(__file__).parent / "data" / "gsm8k"
SAMPLE = 300


def write_jsonl(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def example_file(folder: Path) -> str:
    rows = [{"question": f"What is {i} + {i}?", "answer": 2 * i} for i in range(200)]
    return f"file({write_jsonl(folder / 'problems.jsonl', rows)!r})"


EXAMPLES: dict[str, Callable[[Path], str]] = {
    "file": example_file,
    "gsm8k": lambda folder: f"gsm8k({str(GSM8K)!r})",
}


@pytest.fixture(scope="module", params=sorted(TASKS))
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    name = request.param
    return parse(EXAMPLES[name](tmp_path_factory.mktemp(name)) if name in EXAMPLES else name)


def sample(task: Task, split: Split, seed: int = 0) -> list[Problem]:
    size = task.size(split)
    count = SAMPLE if size is None else min(size, SAMPLE)
    return [task.problem(split, seed, index) for index in range(count)]


def wrong(gold: str) -> str:
    try:
        return str(Fraction(gold) + 1)
    except ValueError:
        return f"({gold})+1"  # also one number more than a countdown allows


def marked(answer: str) -> str:
    return f"<think>x</think><answer>{answer}</answer>"


# The contract ----------------------------------------------------------------------------


def test_gold_scores_full_and_others_none(task: Task) -> None:
    for problem in sample(task, "train") + sample(task, "test"):
        right = task.grade(problem, marked(problem.answer))
        assert right.strict and right.lenient, (problem, right)
        for text in (marked(wrong(problem.answer)), "", marked("")):
            grade = task.grade(problem, text)
            assert not grade.strict and not grade.lenient, (problem, text, grade)


def test_splits_share_no_question(task: Task) -> None:
    questions = {split: {p.question for p in sample(task, split)} for split in SPLITS}
    assert all(questions.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not questions[one] & questions[other]


def test_neighbouring_seeds_differ(task: Task) -> None:
    one, other = ([p.question for p in sample(task, "train", seed)] for seed in (7, 8))
    if task.size("train") is None:
        assert len(set(one) & set(other)) < 0.1 * SAMPLE
    else:
        assert one != other
        assert (task.size("train") or 0) > SAMPLE or sorted(one) == sorted(other)


def test_each_epoch_of_a_finite_task_is_a_new_permutation(task: Task) -> None:
    size = task.size("train")
    if size is None:
        pytest.skip("endless")
    epochs = [[task.problem("train", 0, e * size + i).id for i in range(size)] for e in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(len(set(epoch)) == size for epoch in epochs)


def test_same_place_gives_the_same_problem(task: Task) -> None:
    assert sample(task, "tune", 3) == sample(parse(str(task)), "tune", 3)


def test_ids_are_unique_and_difficulty_is_a_number(task: Task) -> None:
    problems = [problem for split in SPLITS for problem in sample(task, split)]
    assert len({problem.id for problem in problems}) == len(problems)
    for problem in problems:
        assert problem.difficulty is None or type(problem.difficulty) is float
        assert problem.question == problem.question.strip() != ""
        assert type(problem.answer) is str and problem.answer


def test_expression_gives_the_task_back(task: Task) -> None:
    assert parse(str(task)) == task and hash(parse(str(task))) == hash(task)
    assert isinstance(task, Task)


def test_unknown_split_is_an_error(task: Task) -> None:
    split: Any = "dev"
    with pytest.raises(UserError, match=r"no split 'dev'; the splits are train, tune, test"):
        task.problem(split, 0, 0)


BAD = [
    *("arithmetic(terms=1)", "arithmetic(digits=0)", "arithmetic(operators='/')"),
    *("arithmetic(operators='')", "arithmetic(terms='x')", "arithmetics", "nothing()"),
    *("countdown(numbers=1)", "countdown(numbers=11)", "countdown(max_value=4)"),
    *("file", "file('')", "file(3)", "file('a.txt')", "file('a.csv', question='')"),
    *("file('a.csv', answer=' ')", "file('a.csv', difficulty='')", "file('a.csv', level=1)"),
    *("gsm8k('')", "gsm8k(5)", "gsm8k(folder='x')"),
]


@pytest.mark.parametrize("expression", BAD)
def test_bad_values_are_one_line_errors(expression: str) -> None:
    with pytest.raises(UserError) as error:
        parse(expression)
    assert "\n" not in str(error.value)


# Endless tasks ---------------------------------------------------------------------------


def value(node: ast.AST) -> Fraction:
    """The exact value of an expression tree, by Python's own grammar of precedence."""
    match node:
        case ast.Expression(body=body):
            return value(body)
        case ast.Constant(value=int() as number):
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = value(left), value(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise AssertionError(ast.dump(node))


def numbers_in(text: str) -> list[int]:
    tree = ast.walk(ast.parse(text, mode="eval"))
    return [n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, int)]


@pytest.mark.parametrize("make", ["arithmetic", "arithmetic(terms=11, digits=3, operators='+-*')"])
def test_arithmetic_agrees_with_python(make: str) -> None:
    task = parse(make)
    assert isinstance(task, Arithmetic)
    for index in range(200):
        problem = task.problem("train", 1, index)
        text = problem.question.removeprefix("What is ").removesuffix("?")
        assert value(ast.parse(text, mode="eval")) == int(problem.answer)
        assert len(numbers_in(text)) == task.terms


def test_arithmetic_does_products_first() -> None:
    assert evaluate([2, 3, 4], ["+", "*"]) == 14
    assert evaluate([2, 3, 4, 5], ["*", "-", "*"]) == -14
    assert evaluate([9, 2, 3], ["-", "-"]) == 4


def test_arithmetic_puts_every_order_of_a_sum_into_one_split() -> None:
    task = Arithmetic(terms=2, digits=1, operators="+")
    sums = {
        split: {tuple(sorted(task.problem(split, 0, i).data["terms"])) for i in range(100)}
        for split in SPLITS
    }
    assert sum(map(len, sums.values())) == len(set().union(*sums.values()))


@pytest.mark.parametrize("numbers", [3, 4, 6])
def test_countdown_gold_uses_each_number_once_and_reaches_the_target(numbers: int) -> None:
    task = Countdown(numbers=numbers)
    for seed in range(200):
        problem = task.problem("train", seed, 0)
        assert value(ast.parse(problem.answer, mode="eval")) == problem.data["target"]
        assert Counter(numbers_in(problem.answer)) == Counter(problem.data["numbers"])
        assert problem.question.startswith(f"Make {problem.data['target']} from ")


def reachable(values: tuple[Fraction, ...]) -> set[Fraction]:
    """Every value that uses all of `values`, by joining two of them in each way."""
    if len(values) == 1:
        return set(values)
    found: set[Fraction] = set()
    for i, j in itertools.permutations(range(len(values)), 2):
        rest = tuple(v for k, v in enumerate(values) if k not in (i, j))
        a, b = values[i], values[j]
        for joined in (a + b, a - b, a * b, *([a / b] if b else [])):
            found |= reachable((*rest, joined))
    return found


def test_countdown_of_three_is_solvable() -> None:
    task = Countdown(numbers=3)
    for index in range(100):
        problem = task.problem("test", 0, index)
        assert problem.data["target"] in reachable(tuple(map(Fraction, problem.data["numbers"])))


def test_a_task_without_a_problem_for_the_split_is_an_error() -> None:
    draft = Draft("the only one", "What is 1+1?", "2", 1.0, {})
    home = split_of(draft.key)
    assert draw("tiny", home, 0, 0, lambda rng: draft).answer == "2"
    for split in set(SPLITS) - {home}:
        with pytest.raises(UserError, match=f"tiny has no problem for the split '{split}'"):
            draw("tiny", split, 0, 0, lambda rng: draft)
