"""A run that was cut goes on as if it had not been, and only on what it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cases import load
from helpers import ENDED, metrics_of, replace_base, tensors_of
from modicum import cli, machine, runs
from modicum.config import TrainConfig, from_mapping
from modicum.parts import past_config
from modicum.training.checkpoint import reload, restore, save
from modicum.training.loop import Observer, train
from modicum.training.session import prepare
from modicum.types import RunInterrupted, UserError


class StopAt(Observer):
    """Raises in the middle of a run, as a crash would."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.at:
            raise MemoryError


def long(quick: TrainConfig, update: str, out: Path) -> TrainConfig:
    config = replace(quick, update=update, steps=6, objective="grpo(kl=0.01)", out=str(out))
    records = replace(quick.records, anatomy=False)
    return replace(config, batch=replace(quick.batch, updates_per_rollout=2), records=records)


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
    """Only the run that is killed needs a process of its own, forked as a start takes seconds."""
    options = ["--model", str(folders["qwen2"]), "--task", "arithmetic(terms=2,digits=1)"]
    options += ["--steps", "30", "--prompts-per-step", "2", "--group-size", "8"]
    options += ["--max-tokens", "8", "--eval-problems", "0", "--checkpoint-every", "2"]
    options += ["--temperature", "1.5", "--update", "last(1)"]
    options += ["--reward", "accuracy(lenient=True) + format"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.run(["train", *options, "--out", str(whole)]) in ENDED
    child = os.fork()
    if not child:
        try:
            cli.run(["train", *options, "--out", str(cut)])
        finally:
            os._exit(0)
    while len(runs.checkpoints(cut)) < 2 and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (cut / "result.json").exists(), "the run ended before it could be killed"
    assert cli.run(["train", *options, "--out", str(cut), "--resume"]) in ENDED
    assert metrics_of(whole) == metrics_of(cut)
    assert tensors_of(whole) == tensors_of(cut)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_in_a_step_saves_no_half_of_it(
    bare: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The weights have moved by then, and the steps that are counted have not."""
    monkeypatch.setattr(machine, "TWICE_SECONDS", 0.0)

    class Impatient(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            if metrics["step"] == 2:
                for _ in range(2):
                    os.kill(os.getpid(), getattr(signal, name))

    config = replace(bare, records=replace(bare.records, checkpoint_every=0))
    train(replace(config, out=str(tmp_path / "whole")))
    with pytest.raises(RunInterrupted, match="before the first checkpoint"):
        train(config, Impatient())
    train(config, resume=True)
    assert metrics_of(Path(bare.out)) == metrics_of(tmp_path / "whole")
    assert tensors_of(Path(bare.out)) == tensors_of(tmp_path / "whole")


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


def test_the_config_that_a_run_writes_repeats_it(bare: TrainConfig, tmp_path: Path) -> None:
    from modicum.config import read_toml

    train(bare)
    path = Path(bare.out) / "config.toml"
    again = from_mapping(TrainConfig, read_toml(path), "config")
    train(replace(again, out=str(tmp_path / "again")))
    assert metrics_of(Path(bare.out)) == metrics_of(tmp_path / "again")


def test_a_checkpoint_of_another_update_is_refused(bare: TrainConfig, tmp_path: Path) -> None:
    train(replace(bare, update="last(1)"))
    other = prepare(replace(bare, update="first(1)"))
    with pytest.raises(UserError, match="another update"):
        restore(other, runs.checkpoints(Path(bare.out))[-1])


def test_a_checkpoint_of_another_base_is_refused(
    bare: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from conftest import random_model

    config = replace(bare, update="last(1)")
    train(config)
    random_model("qwen2", seed=5).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(folders["qwen2"]).save_pretrained(tmp_path / "other")
    other = prepare(replace(config, model=str(tmp_path / "other")))
    with pytest.raises(UserError, match="another base model"):
        restore(other, runs.checkpoints(Path(bare.out))[-1])


@pytest.mark.parametrize("case", load("resume_steps_left"), ids=lambda case: case["id"])
def test_a_resumed_run_has_the_rest_of_its_steps_left(quick: TrainConfig, case: dict) -> None:
    given = case["input"]
    steps = given["epochs"] * given["steps_per_epoch"]
    session = prepare(replace(quick, steps=steps, update="last(1)"))
    folder = save(session, runs.Run(Path(quick.out)), given["global_step"])
    assert steps - restore(session, folder) == case["expected"]


def test_what_a_schedule_kept_must_be_whole(bare: TrainConfig) -> None:
    config = replace(bare, update="badam(every=1)", steps=2)
    train(config)
    folder = runs.checkpoints(Path(bare.out))[-1]
    state = json.loads((folder / "state.json").read_text())
    assert state["schedule"].keys() == {"number", "since"}
    for broken in ({"number": 1}, None, []):
        (folder / "state.json").write_text(json.dumps({**state, "schedule": broken}))
        with pytest.raises(UserError, match=r"damaged: what the schedule of badam\(every=1\) kept"):
            restore(prepare(config), folder)


# What a run began with ---------------------------------------------------------------------

OTHER = "was trained on another base model: its hash differs"


def cut_run(config: TrainConfig, at: int = 2) -> TrainConfig:
    with pytest.raises(MemoryError):
        train(config, StopAt(at))
    return config


@pytest.fixture
def own(bare: TrainConfig, folders: dict[str, Path], tmp_path: Path) -> TrainConfig:
    """`bare` on a base of its own, which a test may change; the path of it is relative."""
    base = shutil.copytree(folders["qwen2"], tmp_path / "base")
    return replace(bare, model=str(base))


@pytest.mark.parametrize(
    "update",
    [
        *("full", "sparse(keep=0.1)", "lisa(layers=1, every=50)", "slimfit(rate=0.5)"),
        *("badam(every=1)", "lora(rank=2)", "pissa(rank=2)", "last(1)"),
    ],
)
def test_another_base_is_found_whatever_trains(own: TrainConfig, update: str) -> None:
    cut_run(replace(own, update=update))
    before = (Path(own.out) / "metrics.jsonl").read_bytes()
    replace_base(Path(own.model))
    with pytest.raises(UserError, match=OTHER) as caught:
        train(replace(own, update=update), resume=True)
    assert own.model in str(caught.value)
    assert (Path(own.out) / "metrics.jsonl").read_bytes() == before


def test_another_base_is_found_before_there_is_a_checkpoint(own: TrainConfig) -> None:
    cut_run(own, at=0)
    assert not runs.checkpoints(Path(own.out))
    replace_base(Path(own.model))
    with pytest.raises(UserError, match=OTHER):
        train(own, resume=True)


def test_another_dtype_is_another_setting_and_no_other_base(own: TrainConfig) -> None:
    cut_run(own)
    half = replace(own, compute=replace(own.compute, dtype="bf16"))
    with pytest.raises(UserError, match=r"begun with other settings \(compute.dtype = "):
        train(half, resume=True)


def test_a_run_that_holds_the_base_is_not_overwritten(own: TrainConfig, tmp_path: Path) -> None:
    train(own)
    inside = shutil.copytree(own.model, Path(own.out) / "model")
    (tmp_path / "link").symlink_to(own.out)
    for out in (own.out, tmp_path / "link"):
        with pytest.raises(UserError, match="the base of this run; --overwrite would lose it"):
            train(replace(own, model=str(inside), out=str(out)), overwrite=True)
    assert (Path(own.out) / "result.json").is_file()


def test_the_checkpoint_knows_its_base_by_itself(own: TrainConfig) -> None:
    cut_run(own)
    (Path(own.out) / "environment.json").unlink()
    replace_base(Path(own.model))
    with pytest.raises(UserError, match=rf"checkpoint .*step-000002 {OTHER}"):
        train(own, resume=True)


@pytest.mark.parametrize(
    ("name", "before", "after", "what"),
    [
        ("chat_template.jinja", "{", " {", "tokenizer or chat template"),
        ("tokenizer.json", '"<|pad|>"', '"<|PAD|>"', "tokenizer or chat template"),
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03', "config.json"),
    ],
)
def test_what_is_around_the_same_weights_is_compared(
    own: TrainConfig, name: str, before: str, after: str, what: str
) -> None:
    cut_run(own)
    path = Path(own.model) / name
    old = path.read_text(encoding="utf-8")
    new = old.replace(before, after)
    assert new != old
    path.write_text(new, encoding="utf-8")
    with pytest.raises(UserError, match=f"was trained on another {what}"):
        train(own, resume=True)
    path.write_text(old, encoding="utf-8")
    train(own, resume=True)


def test_a_moved_base_is_named_and_checked(own: TrainConfig, tmp_path: Path) -> None:
    whole = replace(own, out=str(tmp_path / "whole"))
    train(whole)
    cut_run(own)
    moved = Path(own.model).rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"there is no model folder .*base, the base of .*--model NEW"
    ):
        train(own, resume=True)
    copy = shutil.copytree(moved, tmp_path / "copy")
    replace_base(copy)
    with pytest.raises(UserError, match=OTHER):
        train(replace(own, model=str(copy)), resume=True)
    result = train(replace(own, model=str(moved)), resume=True)
    assert result["model"] == str(moved)
    assert past_config(Path(own.out)).model == str(moved)
    assert metrics_of(Path(own.out)) == metrics_of(tmp_path / "whole")
    assert tensors_of(Path(own.out)) == tensors_of(tmp_path / "whole")


def test_relative_paths_lead_from_where_the_run_began(
    own: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when all has moved together."""
    (tmp_path / "here.jsonl").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    config = replace(own, model="base", task="file('here.jsonl')", out="run")
    cut_run(config)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    cut_again = replace(config, out="../run")
    with pytest.raises(MemoryError):
        train(cut_again, StopAt(3), resume=True)
    assert past_config(Path("../run")).task == "file('here.jsonl')"
    monkeypatch.chdir(tmp_path.parent)
    moved = tmp_path.rename(tmp_path.with_name("all-moved"))
    try:
        result = train(
            replace(past_config(moved / "run"), model="base", out=str(moved / "run")), resume=True
        )
        assert result["steps"] == 4
        (moved / "run" / "result.json").unlink()
        (moved / "here.jsonl").unlink()
        with pytest.raises(
            UserError, match=r"there is no file here\.jsonl, which file\('here\.jsonl'\)"
        ):
            train(replace(config, model=str(moved / "base"), out=str(moved / "run")), resume=True)
    finally:
        moved.rename(tmp_path)


@pytest.mark.parametrize("place", ["", " @ last(1)"])
def test_a_past_run_that_an_update_reads_is_found_too(
    bare: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    train(replace(bare, steps=1, out="past"))
    config = replace(bare, update=f"sparse(by='run', run='past'){place}", out="run")
    train(replace(config, out="whole"))
    cut_run(config)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    train(replace(config, out="../run"), resume=True)
    assert past_config(tmp_path / "run").update == f"sparse(by='run', run='past'){place}"
    assert tensors_of(tmp_path / "run") == tensors_of(tmp_path / "whole")
    reload(tmp_path / "run")


ROWS = "".join(f'{{"question": "What is {i}+1?", "answer": {i + 1}}}\n' for i in range(60))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + '{"question": "What is 9+90?", "answer": 99}\n',
        lambda text: text.replace('"answer": 7}', '"answer": 8}'),
        lambda text: "\n".join(reversed(text.splitlines())),
    ],
)
def test_changed_problems_are_found(bare: TrainConfig, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "here.jsonl"
    path.write_text(ROWS)
    config = cut_run(replace(bare, task=f"file({str(path)!r})"))
    path.write_text(change(ROWS))
    with pytest.raises(UserError, match=r"the problems of file\(.*\) have changed since the run"):
        train(config, resume=True)
    path.write_text(ROWS + "\n")  # blank lines are no problems
    train(config, resume=True)


def test_a_changed_module_of_a_reward_is_noted(
    bare: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own_reward.py"
    path.write_text(
        "def size(completions, **columns):\n    return [len(c) / 99 for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = cut_run(replace(bare, reward="own_reward:size"), at=0)
    told = StopAt(0)
    with pytest.raises(MemoryError):
        train(config, told, resume=True)
    assert not any("own_reward" in text for text in told.notes)
    path.write_text(path.read_text() + "# more\n")
    with pytest.raises(MemoryError):
        train(config, told, resume=True)
    assert any(t.startswith("own_reward:size has changed since the run began") for t in told.notes)


@pytest.mark.parametrize(
    ("written", "said"), [(None, r"an older .*\(format 1\)"), (3, "another .*3")]
)
def test_a_checkpoint_of_another_version_says_so(
    bare: TrainConfig, written: int | None, said: str
) -> None:
    cut_run(bare)
    path = runs.checkpoints(Path(bare.out))[-1] / "state.json"
    state = json.loads(path.read_text())
    assert state.pop("format") == 2
    path.write_text(json.dumps(state if written is None else {**state, "format": written}))
    with pytest.raises(UserError, match=f"was written by {said}.*this one reads 2"):
        train(bare, resume=True)


def test_an_anatomy_is_not_of_another_base(own: TrainConfig) -> None:
    """The base is read a second time; the result is kept, and says nothing of another base."""
    notes: list[str] = []

    class Late(StopAt):
        def evaluated(self, name: str, found: object) -> None:
            if name == "trained":
                replace_base(Path(own.model))

        def note(self, text: str) -> None:
            notes.append(text)

    evaluation = replace(own.evaluation, eval_problems=1, eval_samples=1)
    config = replace(own, evaluation=evaluation, records=replace(own.records, anatomy=True))
    train(config, Late(99))
    assert re.search(rf"the run has no anatomy: .*run {OTHER}", notes[-1])
    found = json.loads((Path(own.out) / "result.json").read_text())
    assert found["steps"] == 4 and "anatomy" not in found


def test_another_start_of_an_adapter_is_found(own: TrainConfig) -> None:
    """Of what an adapter makes of the base, and does not train."""
    cut_run(replace(own, update="pissa(rank=2)"))
    path = runs.checkpoints(Path(own.out))[-1] / "state.json"
    state = json.loads(path.read_text())
    assert state["start"] != state["base_hash"]
    path.write_text(json.dumps({**state, "start": "0" * 64}))
    with pytest.raises(UserError, match=r"what pissa\(rank=2\) makes of the base to begin with"):
        train(replace(own, update="pissa(rank=2)"), resume=True)
