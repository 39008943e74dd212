"""What would have to change for a run to fit: changes tried in turn, each on those before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from modicum.config import TrainConfig
from modicum.plan.hardware import GIB, Machine
from modicum.plan.memory import Memory, estimate
from modicum.plan.shapes import Lengths, config_of

FIXED = ("weights", "masters", "optimizer", "reference", "schedule", "gradients", "libraries")
"""Parts that neither the batch nor checkpointing changes."""
SMALL_BATCH = 8
SMALL_UPDATE = "last(1)"
"""Of all updates the one with the fewest activations (docs/engine.md) and little state."""


Change = tuple[str, str, dict[str, Any]]
"""The option, its section of the config ("": none), and what is new there."""


def advice(
    config: TrainConfig, machine: Machine, lengths: Lengths, memory: Memory
) -> Iterator[str]:
    """Changes, each on top of those before, until the run fits, and what each comes to."""
    assert machine.memory is not None
    model_config = config_of(config.model, config.trust, config.base)
    changed, word = config, "with"
    for text, section, values in _changes(config, memory, machine.memory):
        if section:
            values = {section: replace(getattr(changed, section), **values)}
        changed = replace(changed, **values)
        peak = estimate(changed, lengths, machine.device, model_config).peak
        fits = peak.total <= machine.memory
        yield f"{word} {text}: {peak.total / GIB:.2f} GiB" + (", fits" if fits else "")
        if fits:
            return
        word = "and"
    yield "not even so: it takes a smaller model, shorter completions or more memory"


def _changes(config: TrainConfig, memory: Memory, room: int) -> list[Change]:
    """What to try in turn: the batch first, unless what it does not change is too much."""
    fixed = sum(size for part, size in memory.peak.parts.items() if part in FIXED)
    batch, compute = _of_batch(config, memory.peak.name), _of_model(config)
    return batch + compute if fixed < room else compute + batch


def _of_batch(config: TrainConfig, phase: str) -> list[Change]:
    batch = config.batch
    found: list[Change] = []
    least = max(batch.group_size, config.evaluation.eval_samples)
    if phase in ("sampling", "evaluation") and batch.rollout_batch > least:
        found.append((f"--rollout-batch {least}", "batch", {"rollout_batch": least}))
    for size in (SMALL_BATCH, 1):
        if batch.micro_batch > size:
            found.append((f"--micro-batch {size}", "batch", {"micro_batch": size}))
    if not config.compute.checkpointing and config.compute.engine != "library":
        found.append(("--checkpointing", "compute", {"checkpointing": True}))
    return found


def _of_model(config: TrainConfig) -> list[Change]:
    found: list[Change] = []
    if config.compute.dtype == "fp32":
        found.append(("--dtype bf16", "compute", {"dtype": "bf16"}))
    if config.update != SMALL_UPDATE:
        found.append((f"--update '{SMALL_UPDATE}'", "", {"update": SMALL_UPDATE}))
    return found
