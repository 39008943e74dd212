"""Processes that train one policy together, as `torchrun` starts them (docs/parallel.md).

Each draws, scores and trains its share of the groups of a step, and all are told what came of them: they
make the same decisions from the same numbers. A run asks the `Team` that it holds, and never how many they
are. To add one: a file with a `Team` and its row in PARALLEL; tests/test_parallel.py picks it up."""

import os

import torch.distributed as dist

from modicum.parallel.base import Team
from modicum.parallel.ddp import Ddp
from modicum.parallel.fsdp import Fsdp
from modicum.parallel.zero import Zero
from modicum.spec import build

PARALLEL: dict[str, type[Team]] = {cls.name: cls for cls in (Team, Ddp, Zero, Fsdp)}
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


def parse(text: str) -> Team:
    """The team that an expression names; `auto` is `ddp` where torchrun has started this process."""
    started = dist.is_initialized() or all(name in os.environ for name in TOLD)
    found: Team = build("parallel", {"auto": ("none", "ddp")[started]}.get(text, text), PARALLEL)
    return found


def is_first() -> bool:
    """Whether this process is the one that speaks to the user."""
    return os.environ.get("RANK", "0") == "0"
