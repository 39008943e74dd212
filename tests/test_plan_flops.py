"""FLOPs of a step against torch's own counter, on the tiny base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from modicum import updates
from modicum.config import Compute, Sampling, Steps
from modicum.engine import Changed, Engine, logprobs, make
from modicum.engine.base import Asked, tokens_of
from modicum.engine.flops import FlopCounter
from modicum.engine.reward import last_states
from modicum.engine.samplers import LocalSampler
from modicum.models.load import Loaded, load
from modicum.types import Batch, Group, Problem, Row
from modicum.updates.base import Prepared

PROMPTS = [tuple(range(20, 40)), tuple(range(30, 50))]
GROUP, TOKENS = 3, 12
SETTINGS = Sampling(max_tokens=TOKENS)
BATCH = Steps(prompts_per_step=2, group_size=GROUP, micro_batch=64, rollout_batch=512)


def _forward(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _backward(g: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_backward_flop_count(g, q, k, v)


def counter() -> FlopCounterMode:
    """torch's counter, told that the CPU has a fused attention too."""
    aten = torch.ops.aten
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: _forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def setting(
    update: str, kind: Any = "split", again: bool = False
) -> tuple[Prepared, Loaded, Engine]:
    """The tiny base under an update; its completions never end early."""
    loaded = replace(load("tiny"), end_tokens=(10**6,))
    prepared = updates.parse(update).apply(loaded.model)
    compute = Compute(engine=kind, checkpointing=again)
    return prepared, loaded, make(prepared.model, loaded.device, prepared.lowest_layer, compute)


def sampled(loaded: Loaded, engine: Engine, trunk_bytes: int = 0) -> list[Group]:
    """Two groups of three completions."""
    keys: list[tuple[object, ...]] = [(0,), (1,)]
    sampler = LocalSampler(engine, loaded.tokenizer, loaded.end_tokens, trunk_bytes=trunk_bytes)
    made = sampler.sample(Asked(PROMPTS, keys, GROUP, SETTINGS, keep_trunk=True))
    none = Problem("", "", "")
    return [Group(none, prompt, found) for prompt, found in zip(PROMPTS, made, strict=True)]


def batch_of(groups: Sequence[Group]) -> Batch:
    """All rows."""
    rows = [
        Row(group.prompt, c.tokens, c.logprobs, 1.0, number, c.trunk)
        for number, group in enumerate(groups)
        for c in group.completions
    ]
    tokens = sum(len(row.tokens) for row in rows)
    return Batch(tuple(rows), len(rows), tokens, frozenset(range(len(groups))))


def trained(engine: Engine, batch: Batch) -> int:
    """What torch counts in forward and backward of the batch."""
    with counter() as mode:
        pack = engine.pack(batch.rows)
        hidden = engine.hidden(pack, engine.trunk(pack))
        tokens = tokens_of(batch.rows, engine.device)
        logprobs.backward(engine, hidden, tokens, SETTINGS, lambda found, _: found.sum())
    return mode.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("update", ["full", "last(1)", "lora(rank=8)", "parts(mlp) & last(2)"])
def test_a_step_costs_what_torch_counts(update: str, checkpointing: bool) -> None:
    prepared, loaded, engine = setting(update, again=checkpointing)
    with counter() as mode:
        groups = sampled(loaded, engine)
    found = FlopCounter(prepared, engine, BATCH, reference=False).step(groups, batch_of(groups), 1)
    assert found.sampling == mode.get_total_flops()
    assert found.training == trained(engine, batch_of(groups))
    assert found.total == found.sampling + found.training


@pytest.mark.parametrize("kind", ["split", "library"])
def test_a_learned_reward_is_a_forward_of_the_layers(kind: Any) -> None:
    prepared, loaded, engine = setting("last(1)", kind=kind)
    groups = sampled(loaded, engine)
    found = FlopCounter(prepared, engine, BATCH, reference=False)
    plain = found.step(groups, batch_of(groups), 1)
    found.judged = True
    with counter() as mode, torch.no_grad():
        for group in groups:
            last_states(engine, group.prompt, [c.tokens for c in group.completions])
    judged = found.step(groups, batch_of(groups), 1)
    assert judged.training - plain.training == mode.get_total_flops()
    assert judged.sampling == plain.sampling


def test_the_library_engine_repeats_prompts_and_layers() -> None:
    prepared, loaded, engine = setting("last(1)", kind="library")
    with counter() as mode:
        groups = sampled(loaded, engine)
    found = FlopCounter(prepared, engine, BATCH, reference=False).step(groups, batch_of(groups), 1)
    assert found.sampling == mode.get_total_flops()
    assert found.training == trained(engine, batch_of(groups))
    _, _, split = setting("last(1)")
    assert found.training > trained(split, batch_of(groups))


def test_a_kept_trunk_costs_nothing_in_training() -> None:
    prepared, loaded, engine = setting("last(2)")
    groups = sampled(loaded, engine, trunk_bytes=2**30)
    found = FlopCounter(prepared, engine, BATCH, reference=False).step(groups, batch_of(groups), 1)
    assert found.training == trained(engine, batch_of(groups))


def test_more_updates_a_reference_and_rows_without_signal() -> None:
    prepared, loaded, engine = setting("lora(rank=8)")
    groups = sampled(loaded, engine)
    batch, nothing = batch_of(groups), Batch((), 6, 72, frozenset())
    plain = FlopCounter(prepared, engine, BATCH, reference=False)
    once, twice = (plain.step(groups, batch, number).training for number in (1, 2))
    assert twice == 2 * once
    assert plain.step(groups, nothing, 1).training == 0
    # With the adapter off, the reference is a forward of the base from the first layer.
    base = setting("full")
    with counter() as mode, torch.no_grad():
        hidden = base[2].hidden(base[2].pack(batch.rows), None)
        base[2].logits(hidden)
    with_kl = FlopCounter(prepared, engine, BATCH, reference=True).step(groups, batch, 2).training
    assert with_kl - twice == mode.get_total_flops()


def test_a_group_in_two_micro_batches_runs_its_prompt_twice() -> None:
    prepared, loaded, engine = setting("full")
    groups = sampled(loaded, engine)
    batch = batch_of(groups)
    small = replace(BATCH, micro_batch=2)
    found = FlopCounter(prepared, engine, small, reference=False).step(groups, batch, 1).training
    parts = [replace(batch, rows=batch.rows[at : at + 2]) for at in (0, 2, 4)]
    assert found == sum(trained(engine, part) for part in parts)


def test_what_trains_now_counts() -> None:
    prepared, loaded, engine = setting("full")
    groups = sampled(loaded, engine)
    batch = batch_of(groups)
    found = FlopCounter(prepared, engine, BATCH, reference=False)
    before = found.step(groups, batch, 1).training
    prepared.activate(name for name in prepared.trainable if "layers.5." in name)
    engine.follow(Changed(prepared.active, prepared.lowest_layer))
    assert found.step(groups, batch, 1).training == trained(engine, batch) < before
