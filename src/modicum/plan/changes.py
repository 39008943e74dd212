"""What would have to change for a run to fit: changes tried in turn, each on those before."""

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
    batch, compute = config.batch, config.compute
    least = max(batch.group_size, config.evaluation.eval_samples)
    of_batch: list[Change] = []
    if memory.peak.name in ("sampling", "evaluation") and batch.rollout_batch > least:
        of_batch.append((f"--rollout-batch {least}", "batch", {"rollout_batch": least}))
    for size in (SMALL_BATCH, 1):
        if batch.micro_batch > size:
            of_batch.append((f"--micro-batch {size}", "batch", {"micro_batch": size}))
    if not compute.checkpointing and compute.engine != "library":
        of_batch.append(("--checkpointing", "compute", {"checkpointing": True}))
    of_model: list[Change] = []
    if compute.dtype == "fp32":
        of_model.append(("--dtype bf16", "compute", {"dtype": "bf16"}))
    if config.update != SMALL_UPDATE:
        of_model.append((f"--update '{SMALL_UPDATE}'", "", {"update": SMALL_UPDATE}))
    return of_batch + of_model if fixed < room else of_model + of_batch
