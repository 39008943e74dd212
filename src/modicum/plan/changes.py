"""What would have to change for a run to fit: the largest batches first, then what it trains."""

from modicum.config import TrainConfig
from modicum.parts import RunParts
from modicum.plan.hardware import GIB, Machine
from modicum.plan.memory import Subject, floor
from modicum.plan.shapes import Lengths
from modicum.plan.sizes import changed, line, room_of, search

SMALL_UPDATE = "last(1)"
"""Of all updates the one with the fewest activations (docs/engine.md) and little state."""
SIZES = ("micro_batch", "rollout_batch", "checkpointing")


def advice(
    config: TrainConfig,
    machine: Machine,
    lengths: Lengths,
    subject: Subject,
    parts: RunParts | None = None,
) -> str:
    """The options of the largest batches that fit, in one line, and what they come to.

    Where none fit, in bf16, and then with a small update too.
    """
    assert machine.memory is not None
    more: dict[str, str] = {}
    attempts = {"dtype": "bf16"} if config.compute.dtype == "fp32" else {}
    if (parts is None or parts.update is None) and config.update != SMALL_UPDATE:
        attempts["update"] = SMALL_UPDATE
    while True:
        tried, last = changed(config, **more), len(more) == len(attempts)
        if last or floor(subject, tried, machine.device) <= machine.memory:
            made, memory = search(tried, lengths, machine, SIZES, subject, room_of(machine))
            names = [
                name for name in SIZES if name != "checkpointing" or made.compute.checkpointing
            ]
            text = f"with {line(made, [*names, *more])}: {memory.peak.total / GIB:.2f} GiB"
            if memory.peak.total <= machine.memory:
                return f"{text}, fits"
            if last:
                return (
                    f"{text}; not even so: it takes a smaller model, shorter completions or more"
                    " memory"
                )
        more = dict(list(attempts.items())[: len(more) + 1])
        subject = Subject.of(changed(config, **more), parts)
