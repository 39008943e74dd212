"""Whether a run certainly cannot fit, before its weights are loaded, and what would have to change.

Certain: at completions of at most `SHORT` tokens the plan is above the free memory by more than
`MARGIN`. Longer ones may end a run that this lets begin; `modicum plan` shows it at `max_tokens`.
"""

from bisect import bisect
from dataclasses import replace
from functools import cache

from modicum.config import TrainConfig
from modicum.models.load import choose_device
from modicum.parts import RunParts
from modicum.plan.hardware import GIB, Machine, free_memory
from modicum.plan.memory import Subject, estimate, floor
from modicum.plan.shapes import Lengths, config_of, generous_bound
from modicum.plan.sizes import changed, line, room_of, search
from modicum.types import UserError

SIZES = ("micro_batch", "rollout_batch", "checkpointing")


def advice(
    config: TrainConfig,
    machine: Machine,
    lengths: Lengths,
    subject: Subject,
    parts: RunParts | None = None,
) -> str:
    """The options of the largest batches that fit, in one line, and what they come to.

    Where none fit, in 16 bits, and then with as many of the last layers as fit (docs/engine.md).
    """
    assert machine.memory is not None
    room = room_of(machine)
    fixed = parts is not None and parts.update is not None
    low = {"dtype": "bf16" if machine.bf16 else "fp16"}
    dtype = low if config.compute.dtype == "fp32" else {}

    @cache
    def sized(last: int = 0, **more: str) -> tuple[str, float]:
        more |= {"update": f"last({last})"} if last else {}
        now = changed(config, **more)
        of = Subject.of(now, parts) if more else subject
        if last != 1 and not fixed and (least := floor(of, now, machine.device)) > room:
            return "", least
        made, memory = search(now, lengths, machine, SIZES, of, room)
        names = [name for name in SIZES if name != "checkpointing" or made.compute.checkpointing]
        total = memory.peak.total
        return f"with {line(made, [*names, *more])}: {total / GIB:.2f} GiB", total

    tried = [sized(), *([sized(**dtype)] if dtype else [])]
    if tried[-1][1] > room and not fixed:
        layers = range(1, subject.layers + 1)
        most = bisect(layers, False, key=lambda n: sized(n, **dtype)[1] > room)
        tried.append(sized(max(1, most), **dtype))
    text, total = next((found for found in tried if found[1] <= room), tried[-1])
    if total <= machine.memory:
        return f"{text}, fits"
    return f"{text}; not even so: it takes a smaller model, shorter completions or more memory"


SHORT = 64
MARGIN = 1.15


def check(config: TrainConfig, parts: RunParts | None = None) -> None:
    """UserError when the run certainly cannot fit the device that it would get here.

    Reads the model's config alone (UserError without); one that does not say enough is let through.
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
