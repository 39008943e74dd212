"""Schedules: what of the trainable tensors trains now, and how far each one steps.

A schedule decides at rollout boundaries only, so that a step is always taken on completions of
the policy that trains. Steps without a signal (all rewards within every group equal) are not
shown to it and not counted. The optimizer's state of what stops training is its policy: `keep`
leaves it where it is, `reset` deletes it, `cpu` moves it to the CPU and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from modicum.types import Frozen

Policy = Literal["keep", "reset", "cpu"]
Named = dict[str, nn.Parameter]
SHOWN = 5  # tensors named in evidence


class Decision(Frozen):
    """What trains from now on, and why; `entries`: flat indices, where only some of a tensor do.
    `restart` deletes all optimizer state, of what goes on training too; `fresh` that of its own."""

    active: frozenset[str]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    entries: Mapping[str, Tensor] | None = None
    restart: bool = False
    fresh: frozenset[str] = frozenset()


class Schedule:
    """Everything trains all the time, with step multipliers that do not change."""

    policy: Policy = "keep"
    remembered: ClassVar[tuple[str, ...]] = ()  # attributes a resumed run needs, of JSON values
    remembered_tensors: ClassVar[tuple[str, ...]] = ()  # and of tensors by name
    by_group: bool = False  # whether the next gradients are to be shown group by group
    ever_by_group: bool = False  # whether that may become true in this run
    follows_length: ClassVar[bool] = False  # whether a longer run differs from its first step on
    holds: bool = False  # whether gradients are only measured now and nothing moves
    edits_gradients: ClassVar[bool] = False  # whether `gradients` changes them
    kept_numbers: ClassVar[int] = 0  # fp32 numbers that it keeps of every one that trains
    step_numbers: ClassVar[int] = 0  # the same, during an optimizer step only
    may_return: frozenset[str] = frozenset()  # may come back to their first values (a pruned rank)
    named: frozenset[str] | None = None  # what may ever train of what is selected; None: all of it
    share: float = 1.0  # of the entries of a tensor, which train when it does

    def __init__(
        self, rates: Mapping[str, float] | None = None, entries: Mapping[str, Tensor] | None = None
    ) -> None:
        self.weights = dict(rates or {})  # multipliers of the learning rate, by tensor
        self.entries: Mapping[str, Tensor] = dict(entries or {})
        self.start: frozenset[str] | None = None  # what trains at first; None: everything

    def plan(self, total_steps: int) -> None:
        """Hear how many optimizer steps the run will take at most."""

    def decide(self, steps: int) -> Decision | None:
        """At a rollout boundary after `steps` steps with a signal: a change, or None."""
        return None

    @property
    def piecewise(self) -> bool:
        """Whether processes may each hold pieces of what trains: it looks at no tensor of it, and
        neither trains some entries nor sends state away."""
        looks = ("group_gradients", "gradients", "stepping", "stepped")
        none = all(getattr(type(self), name) is getattr(Schedule, name) for name in looks)
        return none and not self.entries and self.policy != "cpu"

    def rates(self, steps: int) -> Mapping[str, float]:
        """Multipliers of the learning rate, by tensor; what is missing has 1."""
        return self.weights

    def group_gradients(self, found: Mapping[str, Tensor]) -> None:
        """Look at the part of the batch's gradients that one group gave; only if `by_group`."""

    def gradients(self, found: Mapping[str, Tensor]) -> None:
        """Look at the gradients of the whole batch, before clipping; may edit them in place."""

    def stepping(self, values: Mapping[str, Tensor]) -> None:
        """Look at the masters just before a step that `stepped` will be told of."""

    def stepped(self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Look at (and perhaps edit) the masters just after a step."""

    def settle(self) -> None:
        """Make good what must hold after every step, one without a signal too."""

    def size(self, name: str, parameter: nn.Parameter) -> int:
        """How many entries of a tensor train when it does."""
        entries = self.entries.get(name)
        return count(self.share, parameter.numel()) if entries is None else entries.numel()

    def typical(self, parameters: Mapping[str, nn.Parameter]) -> Sequence[frozenset[str]]:
        """Sets that train, each as likely as the others, for the preview."""
        return [frozenset(parameters) if self.start is None else self.start]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {name: deepcopy(getattr(self, name)) for name in self.remembered}

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs, as tensors."""
        kinds = {kind: getattr(self, kind) for kind in self.remembered_tensors}
        return {f"{kind}/{name}": kinds[kind][name] for kind in kinds for name in kinds[kind]}

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set what `state` and `tensors` gave."""
        vars(self).update({name: state[name] for name in self.remembered})
        for kind in self.remembered_tensors:
            setattr(self, kind, below(f"{kind}/", tensors))


def count(share: float, size: int) -> int:
    """How many of `size` entries train."""
    return max(1, round(share * size))


def top(values: Mapping[str, float], number: int = SHOWN) -> dict[str, float]:
    """The largest values by name, from the largest on; of equal ones those of the first names."""
    names = sorted(values, key=lambda name: (-values[name], name))[:number]
    return {name: values[name] for name in names}


def below(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose name begins with `start`, without it."""
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


class Turns(Schedule, ABC):
    """Another part of the model every so many steps, with fresh moments under the policy `reset`."""

    remembered: ClassVar[tuple[str, ...]] = ("number", "since")
    always: frozenset[str] = frozenset()  # what trains in every turn, and goes on

    def __init__(self, every: int, policy: Policy, seed: int) -> None:
        super().__init__()
        self.every, self.policy, self.seed = every, policy, seed
        self.number = 0  # how many turns have begun
        self.since = 0  # the steps that had been taken when the present one began

    @abstractmethod
    def turn(self, number: int) -> Decision:
        """What trains in turn `number`, from 0."""

    def rng(self, *numbers: int) -> np.random.Generator:
        """Chance that depends on the seed and on `numbers` only."""
        return np.random.default_rng([self.seed, *numbers])

    def decide(self, steps: int) -> Decision | None:
        if self.number and steps - self.since < self.every:
            return None
        self.number += 1
        self.since = steps
        decision = self.turn(self.number - 1)
        fresh = decision.active - self.always if self.policy == "reset" else frozenset[str]()
        return replace(decision, fresh=fresh)
