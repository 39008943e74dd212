"""Rewards: terms that score a completion, and their weighted sum.

To add one: a file with a frozen dataclass (see `base.Term`), an entry in REWARDS. The
contract suite (tests/test_rewards.py) picks it up.
"""

from __future__ import annotations

from modicum import spec
from modicum.rewards.accuracy import Accuracy
from modicum.rewards.base import Reward, Term, reward_of
from modicum.rewards.consistency import Consistency
from modicum.rewards.format import Format
from modicum.rewards.function import Function, rewrite
from modicum.rewards.language import Language
from modicum.rewards.length import Length
from modicum.rewards.random import Random
from modicum.rewards.repetition import Repetition

__all__ = [
    "REWARDS", "Accuracy", "Consistency", "Format", "Function", "Language", "Length",
    "Random", "Repetition", "Reward", "Term", "parse", "reward_of",
]  # fmt: skip

REWARDS: dict[str, type[Term]] = {
    cls.name: cls
    for cls in (
        Accuracy,
        Format,
        Consistency,
        Language,
        Length,
        Repetition,
        Random,
        Function,
    )
}


def parse(text: str) -> Reward:
    """The reward that an expression describes.

    `accuracy + 0.2*format`, or with a function of your own `accuracy + 0.5*module:function`.
    """
    return reward_of(spec.build("reward", rewrite(text), REWARDS))
