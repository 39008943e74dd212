"""What would have to change for a run to fit: the largest batches first, then what it trains."""

from collections.abc import Iterator
from dataclasses import dataclass

from modicum.config import TrainConfig
from modicum.parts import RunParts
from modicum.plan.hardware import GIB, Machine
from modicum.plan.memory import Memory, Subject
from modicum.plan.shapes import Lengths
from modicum.plan.sizes import changed, line, search

SMALL_UPDATE = "last(1)"
"""Of all updates the one with the fewest activations (docs/engine.md) and little state."""
SIZES = ("micro_batch", "rollout_batch", "checkpointing")


@dataclass(frozen=True)
class Advice:
    """Settings with which a run fits, or that are the least that was tried."""

    line: str
    """The options of the command line, all that it takes."""
    memory: Memory
    room: int

    @property
    def text(self) -> str:
        """In words."""
        text = f"with {self.line}: {self.memory.peak.total / GIB:.2f} GiB"
        if self.memory.peak.total <= self.room:
            return f"{text}, fits"
        return f"{text}; not even so: it takes a smaller model, shorter completions or more memory"


def advice(
    config: TrainConfig,
    machine: Machine,
    lengths: Lengths,
    subject: Subject,
    parts: RunParts | None = None,
) -> Advice:
    """The largest batches that fit; where none do, in bf16, and then with a small update too."""
    assert machine.memory is not None
    found = None
    for more, of in _attempts(config, parts, subject):
        tried = changed(config, **more)
        made, memory = search(tried, lengths, machine, SIZES, of, machine.memory)
        names = [name for name in SIZES if name != "checkpointing" or made.compute.checkpointing]
        found = Advice(line(made, [*names, *more]), memory, machine.memory)
        if memory.peak.total <= machine.memory:
            return found
    assert found is not None
    return found


def _attempts(
    config: TrainConfig, parts: RunParts | None, subject: Subject
) -> Iterator[tuple[dict[str, str], Subject]]:
    """What to change beside the sizes, and what is planned for then; each with those before."""
    yield {}, subject
    more: dict[str, str] = {}
    if config.compute.dtype == "fp32":
        more = {"dtype": "bf16"}
        yield more, Subject.of(changed(config, **more), parts)
    if (parts is None or parts.update is None) and config.update != SMALL_UPDATE:
        more = {**more, "update": SMALL_UPDATE}
        yield more, Subject.of(changed(config, **more), parts)
