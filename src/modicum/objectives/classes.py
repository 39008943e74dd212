"""Which objectives are one method in a setting.

In the first update on a batch the policy is the old one: every ratio is 1, no clip, cap, gate or
mask acts, and what is left of an objective is its advantages, its weights, and its terms of KL and
entropy. With one update a rollout there is no other update.
"""

from __future__ import annotations

from collections.abc import Hashable

from modicum.objectives.base import Objective
from modicum.objectives.members import OBJECTIVES, DrGrpo, Rloo


def method(goal: Objective, updates_per_rollout: int, any_scale: bool = False) -> Hashable:
    """What two objectives have in common if they are one method: equal keys, equal gradients.

    With `any_scale` gradients may differ by a factor, as under Adam without clipping: RLOO is
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
