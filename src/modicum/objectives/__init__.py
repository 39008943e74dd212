"""Objectives: advantages, token losses, weights, and what they ask of the batch.

    A_i  = (r_i - mean(r)) / (std(r) + 1e-4)                   group of G, ddof 1
    L    = sum_t w_t [ -min(rho A, clip(rho, 1-e, 1+e) A) + beta k3 ]
    k3   = exp(x) - x - 1,   x = log pi_ref - log pi_theta

An objective is a frozen dataclass with methods (`base`), made of functions (`parts`); `members` has
the table, `classes` says which of them are one method in a setting.

To add one: an `Objective`, its row in `members.OBJECTIVES`, and in tests/test_objectives.py an
example worked out by hand, which the contract suite compares.
"""

from __future__ import annotations

# isort: off
from modicum import spec
from modicum.objectives.base import Clipping, Counts, Objective, Sums, Tokens
from modicum.objectives.members import (
    OBJECTIVES, Cispo, Dapo, Dppo, DrGrpo, Grpo, Gspo, Ipo, Maxrl, ReinforcePp,
    ReinforcePpBaseline, Rloo, Sapo,
)  # fmt: skip
from modicum.objectives.parts import has_signal
# isort: on

__all__ = [
    "OBJECTIVES", "Cispo", "Clipping", "Counts", "Dapo", "Dppo", "DrGrpo", "Grpo", "Gspo", "Ipo",
    "Maxrl", "Objective", "ReinforcePp", "ReinforcePpBaseline", "Rloo", "Sapo", "Sums", "Tokens",
    "has_signal", "parse",
]  # fmt: skip


def parse(text: str) -> Objective:
    """The objective that an expression such as `grpo(kl=0.04)` names."""
    return spec.build("objective", text, OBJECTIVES)
