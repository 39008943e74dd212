"""Objectives: advantages and loss of a step.

To add one: a frozen dataclass (see `base.Objective`) and its row in OBJECTIVES, and in
tests/test_objectives.py an example worked out by hand, which the contract suite compares.
"""

from modicum import spec
from modicum.objectives.base import Counts, Objective, Tokens
from modicum.objectives.members import Dapo, DrGrpo, Grpo, Gspo, Rloo

__all__ = ["OBJECTIVES", "Counts", "Objective", "Tokens", "parse"]

OBJECTIVES: dict[str, type] = {cls.name: cls for cls in (Grpo, DrGrpo, Dapo, Rloo, Gspo)}


def parse(text: str) -> Objective:
    """The objective that an expression such as `grpo(kl=0.04)` names."""
    return spec.build("objective", text, OBJECTIVES)
