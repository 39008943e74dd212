"""The contract that every task keeps, and what is special to each.

A new member of TASKS is tested by itself, at its default expression or the one in EXAMPLES.
"""

from __future__ import annotations

import ast
import itertools
import random
from collections import Counter
from fractions import Fraction
from typing import Any, ClassVar

import pytest

from modicum.tasks import TASKS, Task, fingerprint, overlap, parse
from modicum.tasks.arithmetic import Arithmetic, Countdown, chain
from modicum.tasks.base import Procedural, split_of
from modicum.tasks.dataset import DataTask
from modicum.types import SPLITS, Problem, Split, UserError
from task_examples import EXAMPLES

SAMPLE = 300
SMALL_SAMPLES = {"countdown": 120, "gym": 40, "matrix": 60}  # dearer to make
UNRATED = (
    "aime",
    "amc",
    "file",
    "gym",
    "hub",
    "openthoughts",
)  # may have problems without difficulty


HOSTILE = [
    *("\x00", "\ud800", "[[" * 5000, "\\frac{" * 2000, "1" * 5000, "9**9**9**9", "1/0", "NaN"),
    *(
        "__import__('os').system('true')",
        "[[1, 2], [3]]",
        "\\begin{pmatrix} & \\\\ & \\end{pmatrix}",
    ),
    *(
        "-" * 3000,
        "\\boxed{",
        "</answer><answer>",
        "1 " * 4000,
        "\u0661\u0662\u0663\u0664\u0665\u0666\u0667",
        "0x10",
        "True",
    ),
]


@pytest.fixture(scope="module", params=sorted(TASKS))
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    name = request.param
    return parse(EXAMPLES[name](tmp_path_factory.mktemp(name)) if name in EXAMPLES else name)


def sample(task: Task, split: Split, seed: int = 0) -> list[Problem]:
    size = task.size(split)
    most = SMALL_SAMPLES.get(task.name, SAMPLE)  # type: ignore[attr-defined]
    return [task.problem(split, seed, i) for i in range(most if size is None else min(size, most))]


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


def test_hostile_texts_are_wrong_and_raise_nothing(task: Task) -> None:
    problem = task.problem("test", 0, 0)
    for text in HOSTILE:
        for completion in (text, marked(text), f"\\boxed{{{text}}}", f"#### {text}"):
            grade = task.grade(problem, completion)
            assert not grade.strict, (problem, text[:50], grade)


def test_splits_share_no_question(task: Task) -> None:
    problems = {split: sample(task, split) for split in SPLITS}
    assert all(problems.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not {p.question for p in problems[one]} & {p.question for p in problems[other]}
        if task.size(one) is not None:
            assert overlap(problems[one], problems[other]) == []


def test_neighbouring_seeds_differ(task: Task) -> None:
    one, other = ([p.question for p in sample(task, "train", seed)] for seed in (7, 8))
    if task.size("train") is None:
        assert len(set(one) & set(other)) < 0.1 * len(one)
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
        rated = problem.difficulty is not None or task.name not in UNRATED  # type: ignore[attr-defined]
        assert type(problem.difficulty) is float if rated else True, problem
        assert problem.question == problem.question.strip() != ""
        assert type(problem.answer) is str and problem.answer


def test_expression_gives_the_task_back(task: Task) -> None:
    assert parse(str(task)) == task and hash(parse(str(task))) == hash(task)
    assert isinstance(task, Task)


def test_a_fingerprint_is_a_text_and_stays(task: Task) -> None:
    """Empty where the expression gives the problems; else of what was read."""
    found = fingerprint(task)
    assert found == fingerprint(parse(str(task)))
    assert bool(found) is (isinstance(task, DataTask) or task.name == "gym")  # type: ignore[attr-defined]


def test_unknown_split_is_an_error(task: Task) -> None:
    split: Any = "dev"
    with pytest.raises(UserError, match=r"the split is 'dev'; known are test, train, tune"):
        task.problem(split, 0, 0)


BAD = [
    *("arithmetic(terms=1)", "arithmetic(digits=0)", "arithmetic(operators='/')"),
    *("arithmetic(operators='')", "arithmetic(terms='x')", "arithmetics", "nothing()"),
    *("countdown(numbers=1)", "countdown(numbers=11)", "countdown(max_value=4)"),
    *("file", "file('')", "file(3)", "file('a.txt')", "file('a.csv', question='')"),
    *("file('a.csv', answer=' ')", "file('a.csv', difficulty='')", "file('a.csv', level=1)"),
    *("gsm8k('')", "gsm8k(5)", "gsm8k(folder='x')", "gsm8k('a', bad_rows='drop')"),
    *(
        "math(levels=(6,))",
        "math(levels=3)",
        "math('')",
        "math500(split='train')",
        "aime(year=1999)",
    ),
    *("amc(5)", "openthoughts(' ')", "products(digits=0)", "addition(digits=0)"),
    *("matrix(det)", "matrix(rows=1)", "matrix(rows=9)", "matrix(magnitude=1)"),
    *("gym", "gym()", "gym('chain_sums')", "gym('composite')", "gym('chain_sum', terms=3)"),
    *("gym('chain_sum', max_terms='x')", "gym('chain_sum', max_terms=1)", "gym('acre', seed=1)"),
    *("gym('chain_sum', level=-1)", "gym('composite', level=1)"),
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
    assert chain([2, 3, 4], ["+", "*"])[-1] == "14"
    assert chain([2, 3, 4, 5], ["*", "-", "*"])[-1] == "-14"
    assert chain([9, 2, 3], ["-", "-"])[-1] == "4"


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
    draft = Problem("the only one", "What is 1+1?", "2", 1.0, {})

    class Tiny(Procedural):
        name: ClassVar[str] = "tiny"

        def make(self, rng: random.Random, split: Split) -> Problem:
            return draft

    home = split_of(draft.id)
    assert Tiny().problem(home, 0, 0).answer == "2"
    for split in set(SPLITS) - {home}:
        with pytest.raises(UserError, match=f"tiny has no problem for the split '{split}'"):
            Tiny().problem(split, 0, 0)
