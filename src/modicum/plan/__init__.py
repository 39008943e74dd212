"""What a run will need, before it: memory, FLOPs and time, and whether it fits."""

from modicum.plan.fit import check
from modicum.plan.overall import RunPlan, make

__all__ = ["RunPlan", "check", "make"]
