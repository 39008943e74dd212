"""Memory of a run before it: what lives is counted, and shapes give the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import random_model
from helpers import ENDED
from modicum.config import Compute, Held, Optimizer, Records, Sampling, Steps, TrainConfig, to_toml
from modicum.models.attention import Packed, ScoreRule
from modicum.models.load import TINY
from modicum.plan import check, hardware, sizes
from modicum.plan.hardware import Machine
from modicum.plan.heap import Heap
from modicum.plan.live import Live, peaks, without_data
from modicum.plan.memory import Memory, Subject, estimate
from modicum.plan.shapes import Lengths, config_of, generous_bound, prompt_tokens, skeleton
from modicum.types import UserError

LAYER, NUMBERS = 160_256, 282 * 128 + 2 * 160_256 + 128  # of the tiny base, with two layers
LENGTHS = Lengths(12, 12, 16, 16)
CONFIG = TrainConfig(
    sampling=Sampling(max_tokens=16),
    batch=Steps(prompts_per_step=4, group_size=4, micro_batch=64, rollout_batch=512),
    evaluation=Held(eval_problems=0),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of a model of which there is a config and nothing else."""
    folder = tmp_path_factory.mktemp("model")
    found = json.loads((TINY / "config.json").read_text()) | {"num_hidden_layers": 2}
    found["layer_types"] = found["layer_types"][:2]
    (folder / "config.json").write_text(json.dumps(found))
    return replace(CONFIG, model=str(folder))


def parts(memory: Memory, phase: str) -> dict[str, int]:
    """The parts of a phase."""
    return dict(next(p.parts for p in memory.phases if p.name == phase))


def planned(config: TrainConfig, update: str, **rest: Any) -> Memory:
    """The memory of a run under an update."""
    return estimate(replace(config, update=update, **rest), LENGTHS)


def test_what_lives_is_counted_when_it_is_fullest() -> None:
    live = Live()
    with live:
        with live.phase("one"):
            a = torch.empty(1000)  # 4000
            with live.category("second"):
                b = a + 1  # 8000
            view = b[:10]
            a.add_(1)
            del b
            c = view * 2  # 8040, since the view holds all of b
            del a, view
        with live.phase("two"):
            d = torch.cat([c, c])  # 40 + 80
    assert peaks(live) == {
        "one": {"other": 4040, "second": 4000},
        "two": {"other": 120},
    }
    assert d.shape == (20,)


def test_what_was_made_is_recounted_from_its_start() -> None:
    live = Live()
    with live, live.phase("all"):
        made = torch.empty(10)
        live.recount(made, "cache")
    assert peaks(live) == {"all": {"cache": 40}}


def test_a_model_without_data_keeps_what_autograd_keeps() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    model[0].weight.requires_grad_(False)
    tied = nn.Sequential(model, model[2])
    without_data(tied)
    assert tied[1].weight is model[2].weight and tied[1].weight.is_meta
    live = Live()
    with live, live.phase("forward"):
        out = model(torch.empty(5, 8))
    # x, the first layer's result (no graph, dropped), ReLU's result (kept for the second
    # layer's gradient) and the output; in between x, the first result and ReLU's.
    assert sum(peaks(live)["forward"].values()) == 3 * 5 * 8 * 4
    assert out.shape == (5, 8)


def test_attention_of_a_gpu_keeps_no_padding() -> None:
    """Prompts of 4 and 2 tokens, rows of 3 and 5 on the first and the second: 14 queries, 20 keys."""

    def made(varlen: bool) -> int:
        live, size = Live(varlen), {"dtype": torch.bfloat16, "device": "meta"}
        plan = Packed([4, 2], [0, 1], [3, 5], torch.device("cpu"))
        with live, live.phase("attention"):
            q, k, v = (torch.empty(14, n, 8, **size).requires_grad_() for n in (4, 2, 2))
            with live.category("made"):
                out = plan.attend(0, q, k, v, ScoreRule(1.0, None, None))
            out.sum().backward()
        assert q.grad is not None and q.grad.shape == q.shape
        return peaks(live)["attention"]["made"]

    # Keys and values of 2 heads, the output of 4, and in fp32 a number for each of its queries.
    assert made(True) == 2 * 8 * (2 * 20 * 2 + 14 * 4) + 4 * 14 * 4
    assert made(False) > made(True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_run_without_data_in_every_dtype(dtype: torch.dtype) -> None:
    model = random_model("mixtral", layers=1, num_local_experts=2).to(dtype)
    without_data(model)
    with Live():
        model(input_ids=torch.zeros(1, 5, dtype=torch.long)).logits.sum().backward()
    shapes = {
        name: tuple(p.grad.shape) for name, p in model.named_parameters() if "experts" in name
    }
    assert shapes == {
        "model.layers.0.mlp.experts.gate_up_proj": (2, 96, 32),
        "model.layers.0.mlp.experts.down_proj": (2, 32, 48),
    }


def test_a_heap_keeps_what_was_freed_and_joins_it() -> None:
    heap = Heap()
    first, second, third = (heap.take(10_000) for _ in range(3))
    top = heap.top
    assert 30_000 < top < 31_000
    heap.give(*first)
    heap.give(*second)
    assert heap.take(19_000)[0] == first[0] and heap.top == top
    heap.give(*third)
    heap.take(60_000)  # begins in the hole at the end
    assert heap.top < top + 51_000


def test_while_a_graph_grows_a_block_is_no_room_for_its_like() -> None:
    grown = {}
    for growing in (False, True):
        heap = Heap()
        heap.grow(growing)
        held = [heap.take(10_000) for _ in range(20)]
        for chunk in held:
            heap.give(*chunk)
        # Neighbours join only where nothing lies between them.
        assert heap.take(10_000)[1] >= 10_000
        heap.take(100_000)
        grown[growing] = heap.top
    assert grown[False] < 210_000 < 300_000 < grown[True]
    heap.grow(False)  # the graph is gone, and so is what lay between
    heap.take(150_000)
    assert heap.top == grown[True]


def test_passes_repeat_and_gradients_are_added_to() -> None:
    live = Live()
    with live:
        with live.phase("training"):
            a = torch.empty(100)
            with live.category("gradients"):
                g = torch.empty(50)
            del a
        live.again(0, len(live.events), passing="gradients")
        with live.phase("step"):
            b = torch.empty(10)
    # In the second pass the first gradients are there, the new ones only for a moment.
    assert peaks(live) == {
        "training": {"other": 400, "gradients": 400},
        "step": {"gradients": 200, "other": 40},
    }
    assert (len(g), len(b)) == (50, 10)


@pytest.fixture(scope="module")
def full(config: TrainConfig) -> Memory:
    return planned(config, "full", objective="grpo(kl=0.04)")


def test_full_training_holds_five_times_the_weights(full: Memory) -> None:
    found = parts(full, "optimizer step")
    buffers = found["weights"] - 4 * NUMBERS
    assert 0 <= buffers < 1024
    assert found["reference"] == 4 * NUMBERS
    assert found["gradients"] == 4 * NUMBERS
    assert found["optimizer"] == 8 * NUMBERS
    assert "masters" not in found


def test_the_peak_is_in_training_and_is_the_sum_of_its_parts(full: Memory) -> None:
    assert full.peak.name == "training"
    assert full.peak.total == sum(full.peak.parts.values())
    # At least what enters each of two layers of the tokens of a micro-batch: 4 prompts of
    # 12, and 16 rows of 15; at most a hundred such states a layer.
    states = 4 * 128 * (4 * 12 + 16 * 15)
    assert 2 * states < full.peak.parts["activations"] < 200 * states


def test_a_part_an_adapter_and_checkpointing_hold_less(config: TrainConfig, full: Memory) -> None:
    last = planned(config, "last(1)")
    of_last, of_full = parts(last, "training"), parts(full, "training")
    assert of_last["activations"] < of_full["activations"] / 1.5
    assert parts(last, "optimizer step")["gradients"] == 4 * LAYER
    assert of_last["trunk"] > 0 and "trunk" not in of_full
    again = planned(config, "lora(rank=8)", compute=Compute(checkpointing=True))
    assert parts(again, "training")["activations"] < of_full["activations"] / 1.5
    assert "reference" not in parts(again, "training")


def test_bf16_has_masters_of_what_trains(config: TrainConfig) -> None:
    found = parts(planned(config, "last(1)", compute=Compute(dtype="bf16")), "optimizer step")
    assert found["masters"] == 4 * LAYER
    assert 2 * NUMBERS <= found["weights"] < 2 * NUMBERS + 1024


@pytest.mark.parametrize(("micro", "rollout"), [(3, 16), (12, 8), (16, 4), (8, 8)])
def test_rows_are_as_long_as_their_trunks(config: TrainConfig, micro: int, rollout: int) -> None:
    """Of batches that do not divide each other, and prompts and completions of several lengths."""
    batch = Steps(prompts_per_step=4, group_size=4, micro_batch=micro, rollout_batch=rollout)
    memory = estimate(replace(config, update="last(1)", batch=batch), Lengths(5, 12, 9, 16))
    assert parts(memory, "training")["trunk"] > 0


@pytest.mark.parametrize(
    ("sampler", "device", "drawing", "resting"),
    [
        ("vllm(memory=0.5)", "cuda", 8, 0),
        ("vllm(memory=0.5, sleep=False)", "cuda", 8, 8),
        ("vllm(memory=0.5)", "cpu", 4, 4),  # a quarter of a host's memory at most, and no sleep
        ("server('http://there:8000')", "cuda", 0, 0),
    ],
)
def test_a_server_has_its_share_of_the_memory(
    config: TrainConfig, sampler: str, device: str, drawing: int, resting: int
) -> None:
    gib = 2**30
    own = parts(estimate(config, LENGTHS, device), "training")
    there = replace(config, compute=Compute(sampler=sampler))
    subject = Subject.of(there)
    subject.memory = 16 * gib
    found = estimate(there, LENGTHS, device, subject)
    assert parts(found, "sampling").get("server", 0) == drawing * gib
    training = parts(found, "training")
    assert training.get("server", 0) == resting * gib
    # This process draws nothing.
    assert "evaluation" not in {phase.name for phase in found.phases}
    assert "cache" not in found.largest and "sampler's copy" not in found.largest
    for part in ("weights", "masters", "optimizer", "gradients"):
        assert training.get(part, 0) == own.get(part, 0)
    assert parts(found, "sampling")["optimizer"] == training["optimizer"]  # of the step before


def test_batches_are_chosen_for_what_a_server_leaves(config: TrainConfig) -> None:
    card = Machine("card", "cuda", 640 * 2**20, None)  # of which libraries take 500
    free = replace(config, batch=replace(config.batch, micro_batch=0, group_size=32))
    found = []
    for sampler in ("local", "vllm(memory=0.1)", "vllm(memory=0.1, sleep=False)"):
        there = replace(free, compute=Compute(sampler=sampler))
        found.append(sizes.settle(there, machine=card, prompt=12)[0].batch.micro_batch)
    assert found == [128, 128, 16]


def test_some_entries_cost_their_number(config: TrainConfig) -> None:
    found = parts(planned(config, "sparse(keep=0.05) @ last(1)"), "optimizer step")
    few = found["gradients"] // 4
    assert abs(few - 0.05 * LAYER) < 10
    assert found["optimizer"] == 8 * few
    # Where they are (8), where they began (4), and how far they have gone (4).
    assert found["masters"] == 16 * few


@pytest.mark.parametrize(
    ("size", "millions"), [("0.5B", 494.0), ("1.5B", 1543.7), ("3B", 3085.9), ("7B", 7615.6)]
)
def test_the_built_in_sizes_are_the_published_ones(size: str, millions: float) -> None:
    # Layers are all alike: one is enough.
    found = config_of(f"Qwen/Qwen2.5-{size}-Instruct")
    layers, found.num_hidden_layers = found.num_hidden_layers, 1
    found.layer_types = found.layer_types[:1]
    model = skeleton(found, "bf16")
    total = sum(p.numel() for p in model.parameters())
    layer = sum(p.numel() for n, p in model.named_parameters() if ".layers.0." in n)
    assert round((total + (layers - 1) * layer) / 1e6, 1) == millions


def test_prompts_are_as_long_as_the_tasks() -> None:
    found = prompt_tokens(CONFIG)
    assert found is not None and found[0] == found[1] > 4
    assert prompt_tokens(replace(CONFIG, model="owner/model")) is None


def test_lengths_give_their_mean_and_their_longest() -> None:
    made = [len(row) for row in Lengths(9, 10, 5, 20).completions(8)]
    assert (sum(made), max(made)) == (40, 20)
    assert [len(p) for p in Lengths(9, 10, 5, 20).prompts(3)] == [10, 9, 10]


def test_a_run_that_cannot_fit_is_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda device: 70 * 2**20)
    many = Steps(prompts_per_step=16, group_size=8, micro_batch=64, rollout_batch=512)
    with pytest.raises(UserError, match=r"needs about .* GiB on cpu, where 0\.1 GiB") as caught:
        check(replace(config, compute=Compute(device="cpu"), batch=many))
    said = str(caught.value)
    assert "with --micro-batch " in said and said.endswith("fits") and "\n" not in said


def test_a_run_with_room_is_not_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "estimate", None)
    monkeypatch.setattr(sizes, "free_memory", lambda device: 64 * 2**30)
    check(CONFIG)
    monkeypatch.setattr(sizes, "free_memory", lambda device: None)
    check(replace(CONFIG, model="no/where"))  # it is not even read


def test_the_bound_is_above_the_plan(full: Memory) -> None:
    bound = generous_bound(CONFIG, config_of("tiny"), 16)
    assert bound is not None and bound > full.peak.total


def test_free_memory_is_some_of_what_there_is() -> None:
    found = hardware.free_memory(torch.device("cpu"))
    assert found is None or 0 < found < 2**50


@pytest.mark.slow
def test_a_plan_is_near_what_a_run_takes(tmp_path: Path) -> None:
    """In a process of its own, whose memory is the run's."""
    config = replace(
        CONFIG,
        objective="grpo(kl=0.04)",  # so that all rows train
        model="tiny",
        steps=2,
        out=str(tmp_path / "run"),
        sampling=Sampling(max_tokens=48, temperature=5.0),
        batch=Steps(prompts_per_step=8, group_size=8, micro_batch=64, rollout_batch=512),
        optimizer=Optimizer(learning_rate=1e-5),
        records=Records(anatomy=False),
    )
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    command = [sys.executable, "-m", "modicum", "train", "--config", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in ENDED
    result = json.loads(done.stdout)
    text = (tmp_path / "run/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    mean, longest = (
        round(max(line[f"completions/length_{kind}"] for line in lines)) for kind in ("mean", "max")
    )
    measured = result["peak_memory_bytes"] - result["start_memory_bytes"]
    prompts = prompt_tokens(config)
    assert prompts is not None
    found = estimate(config, Lengths(*prompts, mean, longest)).peak.total
    assert abs(found / measured - 1) < 0.15
