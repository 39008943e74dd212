"""Several processes that train one policy together, as `torchrun` starts them (docs/parallel.md).

Each draws, scores and trains its share of the problems of a step; what comes of them is told to all, so
that every process makes the same decisions from the same numbers. A run asks the `Team` that it holds and
never how many there are.

To add one: a file with a `Team`, a frozen dataclass of its settings that begins it, and its row in
PARALLEL. The contract suite (tests/test_parallel.py) picks it up.
"""

import os

import torch.distributed as dist

from modicum.parallel.base import Alone, Parallel, Team
from modicum.parallel.ddp import Ddp
from modicum.spec import build

__all__ = ["PARALLEL", "Alone", "Ddp", "Parallel", "Team", "is_first", "parse"]

PARALLEL: dict[str, type[Parallel]] = {cls.name: cls for cls in (Alone, Ddp)}
AUTO = "auto"


def parse(text: str) -> Parallel:
    """What an expression names; `auto` is `ddp` where torchrun has started this process."""
    if text == AUTO:
        started = (
            dist.is_initialized() or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
        )
        return Ddp() if started else Alone()
    found: Parallel = build("parallel", text, PARALLEL)
    return found


def is_first() -> bool:
    """Whether this process is the one that tells the user how a run went."""
    return os.environ.get("RANK", "0") == "0"
