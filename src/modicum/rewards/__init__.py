"""Rewards: terms that score a completion, and their weighted sum.

To add one: a file with a frozen dataclass (see `base.Term`), an entry in REWARDS. The
contract suite (tests/test_rewards.py) picks it up.
"""

from __future__ import annotations

from modicum import spec
from modicum.rewards.accuracy import Accuracy
from modicum.rewards.base import Reward, Term, reward_of
from modicum.rewards.format import Format

__all__ = ["REWARDS", "Accuracy", "Format", "Reward", "Term", "parse", "reward_of"]

REWARDS: dict[str, type[Term]] = {cls.name: cls for cls in (Accuracy, Format)}


def parse(text: str) -> Reward:
    """The reward that an expression such as `accuracy + 0.2*format` describes."""
    return reward_of(spec.build("reward", text, REWARDS))
