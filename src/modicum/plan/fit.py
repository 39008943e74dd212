"""Whether a run certainly cannot fit, before its weights are loaded.

Certain means: at completions of at most `SHORT` tokens, whatever `max_tokens` allows, the
plan is above the free memory by more than `MARGIN`. Longer completions may end a run that
this lets begin; `modicum plan` shows it at `max_tokens`.
"""

from __future__ import annotations

from dataclasses import replace

from modicum.config import TrainConfig
from modicum.models.load import choose_device
from modicum.parts import RunParts
from modicum.plan.changes import advice
from modicum.plan.hardware import GIB, Machine, free_memory
from modicum.plan.memory import Subject, estimate
from modicum.plan.shapes import Lengths, config_of, generous_bound
from modicum.types import UserError

SHORT = 64
MARGIN = 1.15


def check(config: TrainConfig, parts: RunParts | None = None) -> None:
    """UserError when the run certainly cannot fit the device that it would get here.

    Reads the model's config alone; a model whose config does not say enough is let through.
    Also UserError, the same as in loading, when there is no config.
    """
    where = choose_device(config.compute.device)
    room = free_memory(where)
    if room is None or config.trust.trust_remote_code:
        return
    longest = min(config.sampling.max_tokens, SHORT)
    model_config = config_of(config.model, config.trust, config.base)
    most = generous_bound(config, model_config, longest)
    if most is None or most < room:
        return
    lengths = Lengths(SHORT, SHORT, longest, longest)
    machine = Machine(str(where), where.type, room, None)
    subject = Subject.of(config, parts)
    memory = estimate(config, lengths, where.type, subject)
    if memory.peak.total <= MARGIN * room:
        return
    held = memory.peak.parts
    largest = max(held, key=lambda part: held[part])
    # The room with the margin, so that what is named is not refused in turn.
    roomy = replace(machine, memory=round(MARGIN * room))
    raise UserError(
        f"the run needs about {memory.peak.total / GIB:.1f} GiB on {where}, where"
        f" {room / GIB:.1f} GiB are free (the largest part: {largest},"
        f" {held[largest] / GIB:.1f} GiB); {advice(config, roomy, lengths, subject, parts)}"
    )
