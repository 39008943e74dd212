"""A run that was cut goes on as if it had not been, and only on what it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cases import load
from helpers import metrics_of, tensors_of
from modicum import cli, runs
from modicum.config import TrainConfig, from_mapping
from modicum.training.checkpoint import restore, save
from modicum.training.loop import Observer, train
from modicum.training.session import prepare
from modicum.types import UserError


class StopAt(Observer):
    """Raises in the middle of a run, as a crash would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.at:
            raise MemoryError


def long(quick: TrainConfig, update: str, out: Path) -> TrainConfig:
    config = replace(quick, update=update, steps=6, objective="grpo(kl=0.01)", out=str(out))
    return replace(config, batch=replace(quick.batch, updates_per_rollout=2))


@pytest.mark.parametrize(("update", "cuts"), [("full", (0, 2)), ("lora(rank=2)", (4,))])
def test_a_resumed_run_equals_the_uncut_one(
    quick: TrainConfig, tmp_path: Path, update: str, cuts: tuple[int, ...]
) -> None:
    """Wherever it was cut. Every method is resumed in tests/test_updates.py."""
    whole = train(long(quick, update, tmp_path / "whole"))
    for at in cuts:
        folder = tmp_path / f"cut-{at}"
        cut = long(quick, update, folder)
        with pytest.raises(MemoryError):
            train(cut, StopAt(at))
        result = train(cut, resume=True)
        assert metrics_of(tmp_path / "whole") == metrics_of(folder)
        assert tensors_of(tmp_path / "whole") == tensors_of(folder)
        for key in ("trained", "generated_tokens", "change_proof", "agreement_max"):
            assert result[key] == whole[key]


def test_killed_with_sigkill_and_resumed_equals_the_uncut_run(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Only the run that is killed needs a process of its own; a start takes ten seconds."""
    options = ["--model", str(folders["qwen2"]), "--task", "arithmetic(terms=2,digits=1)"]
    options += ["--steps", "30", "--prompts-per-step", "2", "--group-size", "8"]
    options += ["--max-tokens", "8", "--eval-problems", "0", "--checkpoint-every", "2"]
    options += ["--temperature", "1.5", "--update", "last(1)"]
    options += ["--reward", "accuracy(lenient=True) + format"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.run(["train", *options, "--out", str(whole)]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "modicum", "train", *options, "--out", str(cut)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while len(runs.checkpoints(cut)) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "result.json").exists(), "the run ended before it could be killed"
    assert cli.run(["train", *options, "--out", str(cut), "--resume"]) == 0
    assert metrics_of(whole) == metrics_of(cut)
    assert tensors_of(whole) == tensors_of(cut)


@pytest.mark.slow
def test_the_script_that_kills_runs(tmp_path: Path) -> None:
    """Five kills, one of each kind; it is made for hundreds."""
    script = Path(__file__).parent.parent / "scripts" / "kills.py"
    options = ["--kills", "5", "--only", "last(1)", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal\n") == 5
    assert done.stdout.endswith("0 differ\n")


def test_the_config_that_a_run_writes_repeats_it(quick: TrainConfig, tmp_path: Path) -> None:
    from modicum.config import read_toml

    train(quick)
    path = Path(quick.out) / "config.toml"
    again = from_mapping(TrainConfig, read_toml(path), "config")
    train(replace(again, out=str(tmp_path / "again")))
    assert metrics_of(Path(quick.out)) == metrics_of(tmp_path / "again")


def test_a_checkpoint_of_another_update_is_refused(quick: TrainConfig, tmp_path: Path) -> None:
    train(replace(quick, update="last(1)"))
    other = prepare(replace(quick, update="first(1)"))
    with pytest.raises(UserError, match="another update"):
        restore(other, runs.checkpoints(Path(quick.out))[-1])


def test_a_checkpoint_of_another_base_is_refused(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from conftest import random_model

    config = replace(quick, update="last(1)")
    train(config)
    random_model("qwen2", seed=5).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(folders["qwen2"]).save_pretrained(tmp_path / "other")
    other = prepare(replace(config, model=str(tmp_path / "other")))
    with pytest.raises(UserError, match="another base model"):
        restore(other, runs.checkpoints(Path(quick.out))[-1])


@pytest.mark.parametrize("case", load("resume_steps_left"), ids=lambda case: case["id"])
def test_a_resumed_run_has_the_rest_of_its_steps_left(quick: TrainConfig, case: dict) -> None:
    given = case["input"]
    steps = given["epochs"] * given["steps_per_epoch"]
    session = prepare(replace(quick, steps=steps, update="last(1)"))
    folder = save(session, runs.Run(Path(quick.out)), given["global_step"])
    assert steps - restore(session, folder) == case["expected"]


def test_what_a_schedule_kept_must_be_whole(quick: TrainConfig) -> None:
    config = replace(quick, update="badam(every=1)", steps=2)
    train(config)
    folder = runs.checkpoints(Path(quick.out))[-1]
    state = json.loads((folder / "state.json").read_text())
    assert state["schedule"].keys() == {"number", "since"}
    for broken in ({"number": 1}, None, []):
        (folder / "state.json").write_text(json.dumps({**state, "schedule": broken}))
        with pytest.raises(UserError, match=r"damaged: what the schedule of badam\(every=1\) kept"):
            restore(prepare(config), folder)
