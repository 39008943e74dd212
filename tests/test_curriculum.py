"""Curricula: the contract of every member, and each problem once an epoch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cases import load
from modicum import curriculum, tasks
from modicum.tasks.file import FileTask

MEMBERS = sorted(curriculum.CURRICULA)


@pytest.fixture
def nine(tmp_path: Path) -> FileTask:
    """A file of which exactly nine problems fall into the train split."""
    path = tmp_path / "problems.jsonl"
    lines: list[str] = []
    while not lines or FileTask(str(path)).size("train") != 9:
        lines.append(json.dumps({"question": f"q{len(lines)}", "answer": str(len(lines))}))
        path.write_text("\n".join(lines) + "\n")
    return FileTask(str(path))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_comes_back_from_its_expression(name: str) -> None:
    made = curriculum.parse(name)
    assert curriculum.parse(str(made)) == made


@pytest.mark.parametrize("name", MEMBERS)
def test_problems_depend_on_task_seed_and_step_alone(name: str) -> None:
    task = tasks.parse("arithmetic")
    first = curriculum.parse(name).problems(task, 3, 5, 4)
    assert first == curriculum.parse(name).problems(task, 3, 5, 4)
    assert len(first) == 4
    for seed, step in ((4, 5), (3, 6)):
        other = curriculum.parse(name).problems(task, seed, step, 4)
        assert {p.id for p in first}.isdisjoint(p.id for p in other)


@pytest.mark.parametrize("name", MEMBERS)
def test_problems_come_from_the_train_split(name: str, nine: FileTask) -> None:
    known = {nine.problem("train", 0, index).id for index in range(9)}
    drawn = [p for step in range(6) for p in curriculum.parse(name).problems(nine, 0, step, 3)]
    assert {p.id for p in drawn} <= known


@pytest.mark.parametrize("case", load("epoch_counts"), ids=lambda case: case["id"])
def test_an_epoch_of_uniform_has_every_problem_once(case: dict, nine: FileTask) -> None:
    given, order = case["input"], curriculum.parse("uniform")
    assert given["n_prompts"] == nine.size("train")
    steps = given["n_prompts"] // given["prompts_per_batch"]
    drawn = [
        problem.id
        for step in range(steps)
        for problem in order.problems(nine, 0, step, given["prompts_per_batch"])
        for _ in range(given["group"] * given["iterations"])
    ]
    assert set(Counter(drawn).values()) == {case["expected"]["per_prompt"]}
    assert len(drawn) == case["expected"]["total"]
