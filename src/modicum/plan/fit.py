"""Whether a run certainly cannot fit, before its weights are loaded.

Certain means: at completions of at most `SHORT` tokens, whatever `max_tokens` allows, the
plan is above the free memory by more than `MARGIN`. Longer completions may end a run that
this lets begin; `modicum plan` shows it at `max_tokens`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modicum.config import TrainConfig
from modicum.models.configs import numbers
from modicum.models.load import choose_device
from modicum.plan.changes import advice
from modicum.plan.hardware import GIB, Machine, free_memory
from modicum.plan.memory import estimate
from modicum.plan.shapes import Lengths, cache_numbers, config_of
from modicum.types import UserError

SHORT = 64
MARGIN = 1.15
LOAD_SLACK = 2 * GIB


def check(config: TrainConfig) -> None:
    """UserError when the run certainly cannot fit the device that it would get here.

    Reads the model's config alone; a model whose config does not say enough is let through.
    Also UserError, the same as in loading, when there is no config.
    """
    where = choose_device(config.compute.device)
    room = free_memory(where)
    if room is None or config.trust.trust_remote_code:
        return
    model_config = config_of(config.model, config.trust, config.base)
    most = generous_bound(config, model_config)
    if most is None or most < room:
        return
    longest = min(config.sampling.max_tokens, SHORT)
    lengths = Lengths(SHORT, SHORT, longest, longest)
    machine = Machine(str(where), where.type, room, None)
    memory = estimate(config, lengths, where.type, model_config)
    if memory.peak.total <= MARGIN * room:
        return
    parts = memory.peak.parts
    largest = max(parts, key=lambda part: parts[part])
    # The room with the margin, so that what is named is not refused in turn.
    roomy = replace(machine, memory=round(MARGIN * room))
    changes = "; ".join(advice(config, roomy, lengths, memory))
    raise UserError(
        f"the run needs about {memory.peak.total / GIB:.1f} GiB on {where}, where"
        f" {room / GIB:.1f} GiB are free (the largest part: {largest},"
        f" {parts[largest] / GIB:.1f} GiB); {changes}"
    )


def generous_bound(config: TrainConfig, model_config: Any) -> float | None:
    """More bytes than any update of the model needs at short completions; None: unknown."""

    def most(*names: str) -> int:
        return max((number for name in names for number in numbers(model_config, name)), default=0)

    layers = getattr(model_config.get_text_config(), "num_hidden_layers", 0)
    hidden, vocabulary, heads = map(most, ("hidden_size", "vocab_size", "num_attention_heads"))
    if not (layers and hidden and vocabulary and heads):
        return None
    inner = most("intermediate_size") or 4 * hidden
    experts = most("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    wide = max(hidden, heads * most("head_dim"))
    held = layers * (4 * hidden * wide + 3 * hidden * inner * (1 + experts))
    weights = 2 * vocabulary * hidden + held
    batch = config.batch
    rows = min(batch.micro_batch, batch.prompts_per_step * batch.group_size)
    longest = min(config.sampling.max_tokens, SHORT)
    tokens = rows * (longest + SHORT / batch.group_size + 1)
    scores = rows * heads * longest * (longest + SHORT)
    activations = 4 * layers * (tokens * (40 * wide + 10 * inner) + scores)
    together = batch.rollout_batch if config.evaluation.eval_problems else batch.group_size
    together = max(together, min(batch.rollout_batch, batch.prompts_per_step * batch.group_size))
    cache = 6 * cache_numbers(model_config) * (longest + SHORT)
    sampling = together * (24 * vocabulary + cache)
    # Weights, masters, two copies of gradients, moments, reference, and sums of a schedule.
    return 48.0 * weights + activations + sampling + LOAD_SLACK
