"""Evaluation: a fixed set, graded by the task, the same however it is batched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers import engine_of
from modicum import tasks
from modicum.config import Sampling
from modicum.evaluate import Evaluation, evaluate, held_out, summarise
from modicum.models.load import Loaded, load
from modicum.types import Completion, UserError

SHORT = Sampling(max_tokens=24)


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load("tiny", device="cpu")


def test_the_same_however_it_is_batched(tiny: Loaded) -> None:
    task = tasks.parse("arithmetic(terms=2, digits=1)")
    found = [
        evaluate(
            engine_of(tiny.model), tiny, task, SHORT, num_problems=9, samples=2, rollout_batch=size
        )
        for size in (1, 6, 512)
    ]
    assert found[0].scores == found[1].scores == found[2].scores
    assert found[0] == found[2]


def test_the_noise_seed_changes_samples_and_not_problems(tiny: Loaded) -> None:
    task = tasks.parse("arithmetic")
    one, two = (
        evaluate(engine_of(tiny.model), tiny, task, SHORT, num_problems=24, samples=4, seed=s)
        for s in (0, 1)
    )
    assert one.greedy == two.greedy
    assert one.scores != two.scores


def test_json_gives_the_evaluation_back(tiny: Loaded) -> None:
    found = evaluate(
        engine_of(tiny.model), tiny, tasks.parse("countdown"), SHORT, num_problems=3, samples=2
    )
    assert Evaluation.from_json({**found.to_json(), "step": 3, "name": "x"}) == found


def completion(text: str, length: int, finished: bool = True) -> Completion:
    return Completion(tuple(range(length)), (0.0,) * length, text, finished)


def test_numbers_by_hand(tiny: Loaded) -> None:
    task = tasks.parse("arithmetic(terms=2, digits=1)")
    problems = held_out(task, "test", 2)
    right = [f"<think>x</think><answer>{p.answer}</answer>" for p in problems]
    drawn = [
        (
            completion(right[0], 4),
            completion("no", 2),
            completion(right[0], 4),
            completion("", 6, False),
        ),
        (completion(problems[1].answer, 1),) * 4,  # right, but not marked
    ]
    found = summarise(task, problems, drawn, [1.0, 0.0], SHORT, "test")
    assert found.scores == [0.5, 0.0]
    assert found.accuracy == 0.25
    assert found.lenient == pytest.approx(6 / 8)
    assert found.format == pytest.approx(2 / 8)
    assert found.truncated == pytest.approx(1 / 8)
    assert found.length == pytest.approx((4 + 2 + 4 + 6 + 4) / 8)
    assert found.greedy == 0.5
    assert {k: v[0] for k, v in found.pass_at.items()} == pytest.approx(
        {"1": 0.25, "2": (1 - 1 / 6) / 2, "4": 0.5}
    )
    assert found.low <= found.accuracy <= found.high


def test_a_small_split_is_used_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(60)))
    task = tasks.parse(f"file({str(path)!r})")
    size = task.size("test")
    assert size is not None
    problems = held_out(task, "test", 1000)
    assert len(problems) == size == len({p.id for p in problems})


def test_an_unknown_split_is_refused(tiny: Loaded) -> None:
    with pytest.raises(UserError, match="no split 'dev'"):
        evaluate(engine_of(tiny.model), tiny, tasks.parse("arithmetic"), SHORT, split="dev")


def test_temperature_zero_samples_once(tiny: Loaded) -> None:
    found = evaluate(
        engine_of(tiny.model),
        tiny,
        tasks.parse("arithmetic"),
        replace(SHORT, temperature=0.0),
        num_problems=5,
    )
    assert found.accuracy == found.greedy and found.samples_per_problem == 1
