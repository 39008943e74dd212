"""Schedules that go in turns: another part of the model every so many steps.

Turns change at rollout boundaries, and steps without a signal do not count. So a turn has
at least `every` steps with a signal, and more where a rollout serves several. Under the policy
`reset` every turn begins with fresh moments, also of what had the turn before.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np

from modicum.updates.schedule import Decision, Policy, Schedule


class Turns(Schedule, ABC):
    """Members say what trains in a turn, from its number alone."""

    remembered: ClassVar[tuple[str, ...]] = ("number", "since")
    always: frozenset[str] = frozenset()
    """What trains in every turn, and goes on from one to the next."""

    def __init__(self, every: int, policy: Policy, seed: int) -> None:
        super().__init__()
        self.every, self.policy, self.seed = every, policy, seed
        self.number = 0
        """How many turns have begun."""
        self.since = 0
        """The steps that had been taken when the present one began."""

    @abstractmethod
    def turn(self, number: int) -> Decision:
        """What trains in turn `number`, from 0."""

    def rng(self, *numbers: int) -> np.random.Generator:
        """Chance that depends on the seed and on `numbers` only."""
        return np.random.default_rng([self.seed, *numbers])

    def decide(self, steps: int) -> Decision | None:
        """The next turn, when the present one has had its steps."""
        if self.number and steps - self.since < self.every:
            return None
        self.number += 1
        self.since = steps
        decision = self.turn(self.number - 1)
        fresh = decision.active - self.always if self.policy == "reset" else frozenset[str]()
        return replace(decision, fresh=fresh)
