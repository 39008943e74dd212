"""Several processes train one policy as one process does, prove that they are alike, and end together."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import QUICK, metrics_of
from modicum import machine, runs
from modicum.config import Held, Optimizer, Steps, TrainConfig
from modicum.engine import agreement
from modicum.engine.samplers import SAMPLERS
from modicum.models.rounding import rounded
from modicum.parallel import PARALLEL, parse
from modicum.training.loop import train
from modicum.types import UserError
from modicum.updates import UPDATES
from off_sampler import Off

WORKER = Path(__file__).with_name("parallel_worker.py")
DIGITS = '''
def digits(completions, log_metric, log_extra, **_):
    """The share of digits; a random model differs in it within a group."""
    log_metric("longest", max(map(len, completions)))
    log_extra("letters", [len(text) for text in completions])
    return [sum(c.isascii() and c.isdigit() for c in t) / max(1, len(t)) for t in completions]
'''
LIMIT = 60.0  # seconds for a job


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    own = {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return {**os.environ, **own, **{name: str(value) for name, value in told.items()}}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Crew:
    """Processes that meet once, and are fed jobs."""

    def __init__(self, size: int) -> None:
        port = free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env=environment(rank, size, port),
            )
            for rank in range(size)
        ]

    def hear(self) -> list[Any]:
        """The next line of every process."""
        return [self.answer(number) for number in range(len(self.processes))]

    def answer(self, number: int) -> Any:
        """The next line of a process."""
        return json.loads(self.processes[number].stdout.readline())  # type: ignore[union-attr]

    def ask(self, job: str, **given: Any) -> list[Any]:
        """What every process answers to a job: {"found": ...} or {"error": ...}."""
        self.send(job, **given)
        return self.hear()

    def send(self, job: str, **given: Any) -> None:
        """Have every process begin a job."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([job, given]) + "\n")
            process.stdin.flush()

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait(LIMIT)
            assert process.stdout is not None
            process.stdout.close()


def crew(size: int) -> Iterator[Crew]:
    made = Crew(size)
    try:
        assert made.hear() == ["ready"] * size
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def two() -> Iterator[Crew]:
    yield from crew(2)


@pytest.fixture(scope="module")
def three() -> Iterator[Crew]:
    yield from crew(3)


@pytest.fixture
def run(bare: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Three problems a step, which two processes share unevenly, in micro-batches that differ."""
    path = tmp_path / "digits.py"
    path.write_text(DIGITS)
    return replace(
        bare,
        reward=f"{path}:digits",
        batch=Steps(prompts_per_step=3, group_size=4, micro_batch=3),
        optimizer=Optimizer(learning_rate=1e-5),
        steps=3,
        out=str(tmp_path / "many"),
    )


def values_of(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(runs.checkpoints(folder)[-1] / "tensors.safetensors")
    return {name: tensor for name, tensor in found.items() if name.startswith("value/")}


def texts_of(folder: Path) -> list[Any]:
    keys = ("step", "id", "completion", "reward", "logged")
    lines = runs.read_lines(folder / "samples.jsonl")
    return [[line.get(key) for key in keys] for line in lines]


def as_one(
    made: Crew, config: TrainConfig, tmp_path: Path, most: float = 1e-6, job: str = "train"
) -> list[Any]:
    """One process and several give the same; what the several answered."""
    one = replace(
        config, out=str(tmp_path / "one"), compute=replace(config.compute, parallel="none")
    )
    alone = train(one)
    told = made.ask(job, config=asdict(config))
    assert [list(answer) for answer in told] == [["found"]] * len(told), told
    folder = Path(config.out)
    assert texts_of(folder) == texts_of(tmp_path / "one")
    for mine, other in zip(metrics_of(folder), metrics_of(tmp_path / "one"), strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            near = {"rel": 2e-3, "abs": 1e-6}
            if key.startswith("critic/"):  # which has larger steps, of gradients near 0 as well
                near = {"rel": 0.1, "abs": 0.01}
            if key.startswith("flops/"):  # counted by batches, which are others
                near = {"rel": 0.02 if job == "train" else 0.5}
            assert value == pytest.approx(other[key], **near), key
    values, wanted = values_of(folder), values_of(tmp_path / "one")
    assert values.keys() == wanted.keys()
    for name, tensor in values.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=most)
    for answer in told:
        assert answer["found"]["change_proof"].startswith(alone["change_proof"])
        assert f"the same in all {len(told)} processes" in answer["found"]["change_proof"]
    assert runs.read_object(folder / "result.json") == told[0]["found"] == told[-1]["found"]
    return told


SOME = [
    ("full", "grpo", {}, "auto"),
    ("lora(rank=2)", "grpo(kl=0.1)", {"updates_per_rollout": 2}, "auto"),
    ("snr(every=2, window=2)", "grpo", {}, "auto"),
    ("last(1)", "ppo(warmup=1)", {}, "auto"),
    ("full", "grpo(kl=0.1)", {"updates_per_rollout": 2}, "zero"),
    ("full", "grpo(kl=0.1)", {"updates_per_rollout": 2}, "fsdp"),
]


@pytest.mark.parametrize(("update", "objective", "batch", "parallel"), SOME)
def test_two_processes_train_as_one(
    update: str,
    objective: str,
    batch: Any,
    parallel: str,
    two: Crew,
    run: TrainConfig,
    tmp_path: Path,
) -> None:
    batch, compute = replace(run.batch, **batch), replace(run.compute, parallel=parallel)
    config = replace(run, update=update, objective=objective, batch=batch, compute=compute)
    as_one(two, config, tmp_path)


@pytest.mark.parametrize("correction", ["token", "mask"])
def test_another_sampler_is_corrected_as_in_one_process(
    correction: str, two: Crew, run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAMPLERS, "off", Off)
    monkeypatch.setattr(agreement, "EXACT", 10.0)
    batch, compute = (
        replace(run.batch, correction=correction),
        replace(run.compute, sampler="off(by=0.5)"),
    )
    as_one(two, replace(run, batch=batch, compute=compute), tmp_path, job="off")
    (first, *_) = metrics_of(Path(run.out))
    assert first["sampler/mismatch_max"] == pytest.approx(1, abs=1e-5)
    assert (first["sampler/rejected_tokens"] > 0.2) == (correction == "mask")


FIRST = [cls.examples[0] for cls in UPDATES.values()]


@pytest.mark.slow
@pytest.mark.parametrize("update", FIRST)
def test_every_update_trains_as_in_one_process(
    update: str, two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    as_one(two, replace(run, update=update), tmp_path)


WHY = {
    "zero": "parallel: zero has masters in pieces, and this update",
    "fsdp": "parallel: fsdp (has masters in pieces, and this update|divides layers whose own matri)",
}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", WHY)
@pytest.mark.parametrize("update", FIRST)
def test_every_update_trains_in_pieces_or_is_refused(
    update: str, parallel: str, two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    config = replace(run, update=update, compute=replace(run.compute, parallel=parallel))
    (first, _) = two.ask("train", config=asdict(config))
    if "error" in first:
        assert re.search(WHY[parallel], first["error"])
        assert not update.startswith(("full", "last", "parts"))
        assert parallel == "fsdp" or not update.startswith("lora")
    else:
        as_one(two, replace(config, out=f"{config.out}-again"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["auto", "zero", "fsdp"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_coarse_weights_are_rounded_alike(
    parallel: str, dtype: Any, two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    compute = replace(run.compute, parallel=parallel, dtype=dtype)
    as_one(two, replace(run, compute=compute, steps=2), tmp_path, 2e-5)


@pytest.mark.parametrize(
    ("parallel", "update", "why"),
    [
        ("zero", "galore", "zero has masters in pieces, and this update looks at whole"),
        ("fsdp", "galore", "fsdp has masters in pieces, and this update looks at whole"),
        ("fsdp", "lora(rank=2)", "none here; take zero or ddp (--quantise nf4 for what rests)"),
        ("fsdp", "parts('norm')", "fsdp divides layers whose own matrices train"),
    ],
)
def test_what_needs_whole_tensors_is_refused(
    parallel: str, update: str, why: str, two: Crew, run: TrainConfig
) -> None:
    compute = replace(run.compute, parallel=parallel)
    for answer in two.ask("train", config=asdict(replace(run, update=update, compute=compute))):
        assert why in answer["error"]


def test_layers_are_in_pieces_while_a_step_is_taken(two: Crew, run: TrainConfig) -> None:
    compute = replace(run.compute, parallel="fsdp")
    told = two.ask("weighed", config=asdict(replace(run, compute=compute, steps=1)))
    for answer in told:
        before, during, after = answer["found"]
        # Of three layers, of 7,680 numbers each, the one that ran last is whole.
        assert before == after and before - during == 2 * 4 * 7680


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update", "more"),
    [
        ("full", {"checkpointing": True}),
        ("full", {"engine": "library"}),
        ("last(1)", {"quantise": "nf4"}),
        ("lisa", {"dtype": "bf16"}),
    ],
)
def test_layers_in_pieces_with_all_else(
    update: str, more: Any, two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    compute = replace(run.compute, parallel="fsdp", **more)
    as_one(two, replace(run, update=update, compute=compute), tmp_path, 2e-5)


def test_a_piece_is_rounded_as_it_is_in_the_whole(two: Crew) -> None:
    values = torch.linspace(-1, 1, 15).view(5, 3)
    wanted = rounded(values, torch.bfloat16, (3, 7)).float().tolist()
    first, second = (answer["found"] for answer in two.ask("written", values=values.tolist()))
    assert first == wanted[:3] and second == wanted[3:]
    assert wanted != values.bfloat16().float().tolist()  # not to nearest


@pytest.mark.parametrize("name", sorted(PARALLEL.keys() - {"none"}))
def test_a_team_answers_alike_everywhere(name: str, two: Crew) -> None:
    first, second = (answer["found"] for answer in two.ask("asked", name=name))
    assert first.pop("team") == [name, 0, 2, True, "cpu"]
    assert second.pop("team") == [name, 1, 2, False, "cpu"]
    assert math.isnan(first["lines"][0].pop("nan")) and second["lines"][0].pop("nan")
    assert first == second
    assert first["lines"] == [{"rank": 1, "text": "ä\ud800"}]
    assert first["each"] == [[0, 0], [1, 1], [2, 0], [3, 0], [4, 1]]
    assert first["told"] == {"rank": 0}
    assert first["summed"] == {"a": 0.75, "b": 2.0}
    assert first["grads"] == [[1.5] * 6, [3.0] * 6, None, [11.0] * 6]


def test_one_process_alone_answers_at_once() -> None:
    team = parse("auto").join("cpu")
    assert (str(team), team.rank, team.size, team.first) == ("none", 0, 1, True)
    assert team.lines([1, 2]) == [1, 2] and team.each([5, 5, 7], str) == ["0", "1", "2"]
    assert team.told(lambda: 3) == 3
    assert team.summed({"a": 0.5}) == {"a": 0.5} and team.prove("now", dict) == ""
    assert [team.owns(number) for number in range(3)] == [True] * 3


@pytest.mark.parametrize(
    "parallel", ["auto", *(pytest.param(name, marks=pytest.mark.slow) for name in WHY)]
)
def test_a_run_goes_on_in_another_number_of_processes(
    parallel: str, two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    """Two, one, two: the same completions as in one, the same checkpoint but for last digits."""
    alone = replace(run.compute, parallel="none")
    train(replace(run, out=str(tmp_path / "one"), steps=6, compute=alone))
    config = replace(run, steps=2, compute=replace(run.compute, parallel=parallel))
    assert "found" in two.ask("train", config=asdict(config))[0]
    train(replace(config, steps=4, compute=alone), resume=True)
    told = two.ask("train", config=asdict(replace(config, steps=6)), resume=True)
    assert all("found" in answer for answer in told), told
    assert texts_of(Path(run.out)) == texts_of(tmp_path / "one")
    wanted = values_of(tmp_path / "one")
    for name, tensor in values_of(Path(run.out)).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("what", "parallel"),
    [
        ("moments", "auto"),
        ("weights", "auto"),
        pytest.param("weights", "fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_not_as_the_others_stops_the_run(
    what: str, parallel: str, two: Crew, run: TrainConfig
) -> None:
    config = replace(run, compute=replace(run.compute, parallel=parallel))
    told = two.ask("planted", config=asdict(config), at=1, what=what)
    start = {"moments": "optimizer/exp_avg/", "weights": "model."}[what]
    for answer in told:
        assert answer["error"].startswith(f"RunStopped: replica proof (first step): {start}")
        assert "of process 1 is not that of process 0" in answer["error"]


def test_ddp_is_for_several_processes(run: TrainConfig) -> None:
    with pytest.raises(UserError, match="ddp is for several processes, which torchrun starts"):
        train(replace(run, compute=replace(run.compute, parallel="ddp")))


def test_an_unknown_way_is_named(run: TrainConfig) -> None:
    with pytest.raises(UserError, match="did you mean 'ddp'"):
        train(replace(run, compute=replace(run.compute, parallel="dpd")))
    assert sorted(PARALLEL) == sorted(cls.name for cls in PARALLEL.values())


@pytest.mark.slow
def test_draws_that_go_on_and_evaluations_are_shared(
    two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    """`refill` draws on for all processes; they answer the held-out problems together."""
    batch = replace(run.batch, prompts_per_step=1, groups="refill(cap=3)")
    held = Held(eval_problems=5, eval_samples=2, eval_every=2)
    as_one(two, replace(run, batch=batch, evaluation=held), tmp_path)
    entries = [runs.read_lines(f / "evaluations.jsonl") for f in (Path(run.out), tmp_path / "one")]
    assert entries[0] == entries[1] and len(entries[0]) == 3


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_is_its_own_affair(
    two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    as_one(two, run, tmp_path, job="short")


@pytest.mark.slow
def test_a_critic_shares_memory_with_layers_in_pieces(
    two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    """Its own model's, and gives values when they are whole."""
    config = replace(run, update="last(1)", objective="ppo(warmup=1, critic='last(1)')")
    train(replace(config, out=str(tmp_path / "one")))
    config = replace(config, compute=replace(run.compute, parallel="fsdp"))
    told = two.ask("train", config=asdict(config))
    assert all("found" in answer for answer in told), told
    assert texts_of(Path(run.out)) == texts_of(tmp_path / "one")
    wanted = values_of(tmp_path / "one")
    for name, tensor in values_of(Path(run.out)).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_memory_that_runs_out_with_layers_in_pieces_ends_the_run(run: TrainConfig) -> None:
    """The others wait in a layer that the one that goes back does not come to."""
    config = replace(run, compute=replace(run.compute, parallel="fsdp"))
    for made in crew(2):
        made.send("short", config=asdict(config))
        second = made.answer(1)
        assert "memory ran out in training with layers in pieces, where several" in second["error"]
        made.processes[1].kill()
        assert "process 0 ends, since another one of its run has ended" in made.answer(0)["error"]


@pytest.mark.slow
def test_a_curriculum_hears_of_all_groups(two: Crew, run: TrainConfig, tmp_path: Path) -> None:
    config = replace(run, curriculum="bandit", task="arithmetic(terms=(2, 3, 4))", steps=4)
    as_one(two, replace(config, reward=f"accuracy + {run.reward}"), tmp_path)


@pytest.mark.slow
def test_a_run_without_a_signal_says_so_everywhere(two: Crew, run: TrainConfig) -> None:
    told = two.ask("train", config=asdict(replace(run, reward="accuracy", steps=2)))
    assert "no group of step 1 had a signal" in told[0]["found"]["nothing_trained"]
    assert told[0] == told[1]


@pytest.mark.slow
def test_a_reward_model_scores_where_the_group_is(
    two: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(run.model, num_labels=1)
    for target in (model, AutoTokenizer.from_pretrained(run.model)):
        target.save_pretrained(tmp_path / "judge")
    as_one(two, replace(run, reward=f"learned({str(tmp_path / 'judge')!r})"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("update", "parallel"),
    [
        ("full", "auto"),
        ("snr(every=2, window=2)", "auto"),
        ("sparse(keep=0.1)", "auto"),
        ("last(1)", "fsdp"),
    ],
)
def test_three_processes_train_as_one(
    update: str, parallel: str, three: Crew, run: TrainConfig, tmp_path: Path
) -> None:
    batch = replace(run.batch, prompts_per_step=2)  # one has none
    compute = replace(run.compute, parallel=parallel)
    as_one(three, replace(run, update=update, batch=batch, compute=compute), tmp_path, 2e-6)


def begun(folder: Path, model: Path, *args: str) -> list[subprocess.Popen[str]]:
    """Two processes of `modicum train`, as torchrun starts them, in the middle of a long run."""
    options = [*QUICK[2:], "--steps", "400", "--model", str(model), "--out", str(folder), *args]
    options += ["--eval-problems", "0", "--learning-rate", "1e-5", "--checkpoint-every", "0"]
    port = free_port()
    made = [
        subprocess.Popen(
            [sys.executable, "-m", "modicum", "train", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(rank, 2, port),
        )
        for rank in range(2)
    ]
    end = time.monotonic() + LIMIT
    while len(runs.read_lines(folder / "metrics.jsonl", optional=True)) < 3:
        assert time.monotonic() < end and all(process.poll() is None for process in made)
        time.sleep(0.1)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_process_that_dies_ends_the_others(
    parallel: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    first, second = begun(tmp_path / "run", folders["qwen2"], "--parallel", parallel)
    second.kill()
    second.communicate(timeout=LIMIT)
    _, err = first.communicate(timeout=LIMIT)
    assert first.returncode == 2
    assert err.splitlines()[-1].startswith("error: process 0 ends, since another one of its run")


def test_a_signal_after_processes_have_agreed_is_for_the_next_time() -> None:
    """Else the one that hears it would end alone, and the others by its loss."""
    asked: list[int] = []

    def agreed(number: int) -> int:
        asked.append(number)
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return number

    with machine.Interrupts(at_once=True) as interrupts:
        interrupts.agreed = agreed
        with interrupts.whole():
            pass
        with pytest.raises(machine.Stopped), interrupts.whole():
            pass
    assert asked == [0, signal.SIGTERM]


@pytest.mark.slow
@pytest.mark.parametrize("whom", [0, 1])
def test_a_signal_to_one_ends_all_after_the_step(
    whom: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    made = begun(tmp_path / "run", folders["qwen2"])
    made[whom].send_signal(signal.SIGTERM)
    ended = [process.communicate(timeout=LIMIT) for process in made]
    assert [process.returncode for process in made] == [128 + signal.SIGTERM] * 2
    assert "--resume goes on from there" in ended[0][1].splitlines()[-1]
    assert ended[1][0] == "" and "interrupted" not in ended[1][1]  # one of them says it
    (saved,) = runs.checkpoints(tmp_path / "run")
    done = len(runs.read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert saved.name == f"step-{done:06}"


@pytest.mark.slow
def test_torchrun_starts_a_run(folders: dict[str, Path], tmp_path: Path) -> None:
    options = [*QUICK, "--model", str(folders["qwen2"]), "--out", str(tmp_path / "run"), "--json"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", str(free_port()), "-m", "modicum", "train", *options),
            *("--reward", "accuracy + 0.5*random"),  # so that a rate is found
        ],
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == runs.read_object(tmp_path / "run" / "result.json")
