"""Objectives: advantages, token losses, weights, and what they ask of the batch.

    A_i  = (r_i - mean(r)) / (std(r) + 1e-4)                   group of G, ddof 1
    L    = sum_t w_t [ -min(rho A, clip(rho, 1-e, 1+e) A) + beta k3 ]
    k3   = exp(x) - x - 1,   x = log pi_ref - log pi_theta

An objective is a frozen dataclass with methods (`base`), made of functions (`parts`). To add one: an
`Objective` and its row in `members`, and in tests/test_objectives.py an example worked out by hand,
which the contract suite compares.
"""

from __future__ import annotations

from collections.abc import Hashable

from modicum import spec
from modicum.objectives import members
from modicum.objectives.base import Clipping, Objective, Sums, Tokens
from modicum.objectives.members import OBJECTIVES, Dapo, DrGrpo, Grpo, Gspo, Rloo
from modicum.objectives.parts import Counts, has_signal

__all__ = [
    "OBJECTIVES", "Clipping", "Counts", "Dapo", "DrGrpo", "Grpo", "Gspo", "Objective", "Rloo",
    "Sums", "Tokens", "has_signal", "members", "method", "notes", "parse",
]  # fmt: skip


def parse(text: str) -> Objective:
    """The objective that an expression such as `grpo(kl=0.04)` names."""
    return spec.build("objective", text, OBJECTIVES)


def method(goal: Objective, updates_per_rollout: int, any_scale: bool = False) -> Hashable:
    """What two objectives have in common if they are one method: equal keys, equal gradients.

    In the first update on a batch every ratio is 1, no clip, cap, gate or mask acts, and what is
    left is advantages, weights, and terms of KL and entropy; with one update a rollout there is no
    other. With `any_scale` gradients may differ by a factor, as under Adam without clipping: RLOO is
    G / (G - 1) times Dr. GRPO.
    """
    cls = type(goal)
    if updates_per_rollout > 1 or cls not in OBJECTIVES.values():
        return goal
    # On policy the corrected k3 has the gradient of k2.
    form = goal.kl and {"k3_corrected": "k2"}.get(goal.kl_form, goal.kl_form)
    if any_scale and cls is Rloo and not (goal.kl or goal.entropy):
        cls = DrGrpo
    return *_kind(cls), goal.kl, form, goal.entropy, goal.entropy_share


def _kind(cls: type[Objective]) -> tuple[Hashable, ...]:
    return cls.advantages, cls.weights, cls.whitened


def notes(goal: Objective, updates_per_rollout: int, num_terms: int = 1) -> list[str]:
    """What the user should know of an objective in a run whose reward has so many terms."""
    found, cls = list[str](), type(goal)
    same = [n for n, c in OBJECTIVES.items() if _kind(c) == _kind(cls) and c is not cls]
    if same and updates_per_rollout == 1:
        found.append(
            f"with one update a rollout {goal.name} is the same method as {', '.join(same)}: every"
            " ratio is 1, so that nothing is clipped or masked (docs/objectives.md)"
        )
    if goal.accuracy_only and num_terms > 1:
        found.append(
            f"{goal.name} divides by the mean reward of a group, which other terms than accuracy"
            " raise: a rare success counts less than it should (--reward accuracy)"
        )
    return found
