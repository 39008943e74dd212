"""The engine: sampling completions, and the log-probs and gradients of a policy.

`policy_of` makes the policy of a loaded model; `make` chooses how a model is run: in
stretches of layers (`split`), or whole (`library`)."""

from modicum.engine.base import Asked, Changed, Engine, Groups, Sampler, Scorer, Trunk
from modicum.engine.policy import Policy, make, policy_of

__all__ = [
    "Asked", "Changed", "Engine", "Groups", "Policy", "Sampler", "Scorer", "Trunk", "make", "policy_of",
]  # fmt: skip
