"""What would have to change for a run to fit: the largest batches first, then what it trains."""

from bisect import bisect
from functools import cache

from modicum.config import TrainConfig
from modicum.parts import RunParts
from modicum.plan.hardware import GIB, Machine
from modicum.plan.memory import Subject, floor
from modicum.plan.shapes import Lengths
from modicum.plan.sizes import changed, line, room_of, search

SIZES = ("micro_batch", "rollout_batch", "checkpointing")


def advice(
    config: TrainConfig,
    machine: Machine,
    lengths: Lengths,
    subject: Subject,
    parts: RunParts | None = None,
) -> str:
    """The options of the largest batches that fit, in one line, and what they come to.

    Where none fit, in bf16, and then with as many of the last layers as fit: of all parts with as many
    numbers they have the fewest activations (docs/engine.md), and each more of them takes more.
    """
    assert machine.memory is not None
    room = room_of(machine)
    fixed = parts is not None and parts.update is not None
    dtype = {"dtype": "bf16"} if config.compute.dtype == "fp32" else {}

    @cache
    def sized(last: int = 0, **more: str) -> tuple[str, float]:
        """The line with these changes, and its bytes; at least those, where no batch can help."""
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
