"""A budget of tokens, FLOPs or seconds ends a run at the end of the nearest step."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import metrics_of, tensors_of
from modicum import runs
from modicum.config import Budget, TrainConfig
from modicum.training.loop import Observer, train
from modicum.training.session import prepare
from modicum.types import UserError


def budgeted(config: TrainConfig, amount: float, unit: Any = "tokens", **rest: Any) -> TrainConfig:
    return replace(config, budget=Budget(amount, unit), **rest)


def tokens_by_step(folder: Path) -> list[float]:
    return [line["tokens/generated"] for line in runs.read_lines(folder / "metrics.jsonl")]


def test_a_run_ends_at_the_step_nearest_to_its_tokens(quick: TrainConfig, tmp_path: Path) -> None:
    free = train(replace(quick, steps=6, out=str(tmp_path / "free")))
    spent = tokens_by_step(tmp_path / "free")
    assert free["steps"] == 6
    assert free["generated_tokens"] == spent[-1]
    last = spent[3] - spent[2]
    # Just below and just above the middle of the fourth step.
    for amount, steps in ((spent[3] + last / 2, 4), (spent[3] + last / 2 + 1, 5)):
        folder = tmp_path / f"{amount:.0f}"
        found = train(budgeted(quick, amount, steps=6, out=str(folder)))
        assert found["steps"] == steps
        assert tokens_by_step(folder) == spent[:steps]
        # What is due at the end of a run was done there.
        assert [path.name for path in runs.checkpoints(folder)][-1] == f"step-{steps:06d}"
        assert runs.read_lines(folder / "evaluations.jsonl")[-1]["step"] == steps - 1


@pytest.mark.parametrize("unit", ["tokens", "flops"])
def test_a_run_with_a_budget_that_was_cut_equals_the_uncut_one(
    bare: TrainConfig, tmp_path: Path, unit: str
) -> None:
    column = {"tokens": "tokens/generated", "flops": "flops/total"}[unit]
    # A rate at which completions stay as they are, whatever the schedule.
    slow = replace(bare.optimizer, learning_rate=1e-6)
    bare = replace(bare, sampling=replace(bare.sampling, max_tokens=12), optimizer=slow)
    train(replace(bare, steps=6, out=str(tmp_path / "free")))
    amount = runs.read_lines(tmp_path / "free" / "metrics.jsonl")[3][column]
    optimizer = replace(bare.optimizer, schedule="linear")
    config = budgeted(
        bare, amount, unit, steps=50, out=str(tmp_path / "uncut"), optimizer=optimizer,
        records=replace(bare.records, checkpoint_every=2),
    )  # fmt: skip
    assert train(config)["steps"] == 4

    class Cut(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            if metrics["step"] == at:
                raise KeyboardInterrupt

    for at in (2, 3):
        folder = tmp_path / f"cut-{at}"
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, out=str(folder)), Cut())
        train(replace(config, out=str(folder)), resume=True)
        assert metrics_of(folder) == metrics_of(tmp_path / "uncut")
        assert tensors_of(folder) == tensors_of(tmp_path / "uncut")


def test_a_run_whose_result_was_lost_takes_no_further_step(
    quick: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = budgeted(quick, 1, steps=9, out=str(folder))
    assert train(config)["steps"] == 1
    before = metrics_of(folder)
    (folder / "result.json").unlink()
    assert train(config, resume=True)["steps"] == 1
    assert metrics_of(folder) == before
    shutil.rmtree(folder)


def test_a_linear_rate_falls_with_what_was_spent(quick: TrainConfig) -> None:
    settings = replace(quick.optimizer, schedule="linear", learning_rate=1.0)
    session = prepare(budgeted(quick, 1000, steps=100, optimizer=settings))
    session.counters.generated_tokens, session.counters.rollouts = 250, 1
    assert session.present_rate == pytest.approx(0.75)
    # The steps may run out before the budget does.
    session.counters.rollouts = 90
    assert session.present_rate == pytest.approx(0.1)


def test_seconds_end_a_run(quick: TrainConfig) -> None:
    assert train(budgeted(quick, 1e-3, "seconds", steps=50))["steps"] == 1


def test_a_budget_below_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="budget must be at least 0"):
        Budget(-1)
