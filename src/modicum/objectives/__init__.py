"""Objectives: advantages and loss of a step.

To add one: a file with a frozen dataclass (see `base.Objective`; `base.Clipped` if it has a
clipped surrogate) that brings an example worked out by hand, and its row in OBJECTIVES. The
contract suite (tests/test_objectives.py) picks it up.
"""

from modicum import spec
from modicum.objectives.base import Clipped, Counts, LossExample, LossRow, Objective, Tokens
from modicum.objectives.dapo import Dapo
from modicum.objectives.dr_grpo import DrGrpo
from modicum.objectives.grpo import Grpo
from modicum.objectives.gspo import Gspo
from modicum.objectives.rloo import Rloo

OBJECTIVES: dict[str, type] = {cls.name: cls for cls in (Grpo, DrGrpo, Dapo, Rloo, Gspo)}

__all__ = [
    "OBJECTIVES",
    "Clipped",
    "Counts",
    "LossExample",
    "LossRow",
    "Objective",
    "Tokens",
    "parse",
]


def parse(text: str) -> Objective:
    """The objective that an expression such as `grpo(kl=0.04)` names."""
    return spec.build("objective", text, OBJECTIVES)
