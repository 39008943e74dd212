"""What a run will need, before it: memory, FLOPs and time, and whether it fits."""

from modicum.plan.overall import RunPlan, make
from modicum.plan.sizes import check

__all__ = ["RunPlan", "check", "make"]
