"""Runs on a pretend accelerator: nothing lies on the wrong device, and the host seldom waits."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import metrics_of
from modicum import cli, runs
from modicum.config import Compute, Held, Optimizer, Records, TrainConfig
from modicum.training.loop import Observer, train
from modicum.updates import UPDATES
from pretend import Record, pretend

MICRO_BATCHES, STEPS = 2, 2  # of 4 rows each, with a prompt of its own
EXAMPLES = [cls.examples[0] for cls in UPDATES.values()]
FEW = ("full", "last(1)", "lora(rank=4)", "sparse(keep=0.05)", "galore(rank=4, every=2)")


class Cut(Observer):
    """Ends a run after its first step, as a crash would, and its checkpoint."""

    def evaluated(self, name: str, found: Any) -> None:
        if name == "step 1":
            raise MemoryError


def on_device(config: TrainConfig, **settings: Any) -> TrainConfig:
    """Two steps of two micro-batches with a KL term, an evaluation after each, and anatomy."""
    compute = replace(Compute(device="pretend"), **settings)
    return replace(
        config,
        **{"objective": "grpo(kl=0.04)", "steps": STEPS, "compute": compute},
        batch=replace(config.batch, micro_batch=4, rollout_batch=8),
        optimizer=Optimizer(learning_rate=1e-3),
        evaluation=Held(eval_problems=2, eval_samples=2, eval_every=1),
        records=Records(checkpoint_every=1, samples_every=2),
    )


def cut_and_resumed(config: TrainConfig) -> Record:
    """What the device was asked for in a run that was cut after its first step and went on."""
    with pretend() as record:
        with contextlib.suppress(MemoryError):
            train(config, Cut())
        result = train(config, resume=True)
    assert "trainable tensors changed" in result["change_proof"]
    assert result["anatomy"]
    assert len(metrics_of(Path(config.out))) == STEPS
    return record


@pytest.mark.parametrize("update", FEW)
def test_a_run_stays_on_its_device(quick: TrainConfig, update: str) -> None:
    cut_and_resumed(replace(on_device(quick), update=update))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["split", "library"])
@pytest.mark.parametrize("update", EXAMPLES)
def test_every_member_stays_on_its_device(quick: TrainConfig, update: str, engine: Any) -> None:
    cut_and_resumed(replace(on_device(quick, engine=engine), update=update))


@pytest.mark.parametrize(
    "objective", ["ppo(warmup=0)", "grpo(kl=0.04, kl_form='k1_reward')", "dapo(entropy=0.01)"]
)
def test_an_objective_stays_on_its_device(quick: TrainConfig, objective: str) -> None:
    cut_and_resumed(replace(on_device(quick), update="last(1)", objective=objective))


def test_a_learned_reward_stays_on_its_device(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"<a>{n}", "rejected": f"<b>{n}"} for n in range(160)]
    (tmp_path / "rows.jsonl").write_text(runs.to_lines(rows))
    options = ["--pairs", tmp_path / "rows.jsonl", "--model", folders["qwen2"]]
    options += ["--out", tmp_path / "reward", "--rank", 4, "--learning-rate", "1e-2", "--json"]
    with contextlib.redirect_stdout(None):
        assert cli.run(["reward-model", *map(str, options)]) == 0
    reward = f"learned({str(tmp_path / 'reward')!r})"
    cut_and_resumed(replace(on_device(quick), update="last(1)", reward=reward))
