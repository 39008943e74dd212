"""PPO: advantages against the values of a critic, and what the critic is.

    D_t = R_t - V_t,   A_t = D_t - D_{t+1} + lambda A_{t+1}     (GAE, gamma 1, D and A are 0 at the end)

R_t is what token t is followed by: the reward of its completion, with the KL in the reward less that
of the tokens from t on. V_t is read where token t is predicted, the first value at the last token of
the prompt. The end is terminal, also of a completion that was cut. A is whitened over all tokens of the
batch. With lambda 1 the target of V_t is R_t, whatever the lambda of the policy.

`training.critic` holds the weights. Departures from the paper: the critic has no layer in common with
what trains of the policy, its loss is not clipped unless `value_clip` says so, it starts as the mean
reward of the first rollout, learns alone in the first `warmup` rollouts, and gives way to the batch mean
where it explains nothing (`gate`, after EVPO).

PPO: arXiv 1707.06347; GAE: 1506.02438.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from modicum import spec
from modicum.limits import Limits, Natural, Positive, Share
from modicum.objectives import parts
from modicum.objectives.base import MOST, Above, Clipping
from modicum.types import Group, UserError

Rate = Annotated[float | None, Limits(0, 1, above=True)]
On = Literal["auto", "trunk", "last"]
ValueLoss = Literal["squared", "bce"]


@dataclass(frozen=True)
class Head(spec.Spec):
    """A linear layer on states of the policy, which stay as they are."""

    name: ClassVar[str] = "head"
    rate: ClassVar[float] = 3e-3
    """The learning rate of what trains, unless the objective says another."""

    @property
    def update(self) -> str:
        """What trains of a model of the critic's own; empty: it has none."""
        return ""

    def reader(self, size: int) -> nn.Module:
        """What makes a number of states of such a size; its last layer is `[-1]`."""
        return nn.Sequential(nn.Linear(size, 1))


@dataclass(frozen=True)
class Mlp(Head):
    """A hidden layer before the linear one."""

    name: ClassVar[str] = "mlp"
    width: Positive = 256

    def reader(self, size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, self.width), nn.SiLU(), nn.Linear(self.width, 1))


@dataclass(frozen=True)
class Lora(Head):
    """A linear layer on the base with an adapter of its own, whose frozen weights it shares."""

    name: ClassVar[str] = "lora"
    rate: ClassVar[float] = 1e-4
    rank: Positive = 8

    @property
    def update(self) -> str:
        return f"lora(rank={self.rank})"


@dataclass(frozen=True)
class Full(Head):
    """A linear layer on a second copy of the base, all of which trains."""

    name: ClassVar[str] = "full"
    rate: ClassVar[float] = 1e-5

    @property
    def update(self) -> str:
        return "full"


CRITICS: dict[str, type[Head]] = {cls.name: cls for cls in (Head, Mlp, Lora, Full)}


@dataclass(frozen=True)
class Ppo(Clipping):
    """PPO (arXiv 1707.06347): less a critic's value of each token, whitened over the batch."""

    whitened: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    has_critic: ClassVar[bool] = True
    advantages = staticmethod(parts.known)

    critic: str = field(default="head", kw_only=True)
    on: On = field(default="auto", kw_only=True)
    lambda_: Share = field(default=1.0, kw_only=True)
    adaptive: Share = field(default=0.0, kw_only=True)
    warmup: Natural = field(default=10, kw_only=True)
    passes: Positive = field(default=2, kw_only=True)
    rate: Rate = field(default=None, kw_only=True)
    max_norm: Annotated[float, Limits(0, MOST)] = field(default=1.0, kw_only=True)
    gate: bool = field(default=True, kw_only=True)
    value_loss: ValueLoss = field(default="squared", kw_only=True)
    value_clip: Above = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        spec.check(f"{self.name}: on", self.on, On)
        spec.check(f"{self.name}: value_loss", self.value_loss, ValueLoss)
        if self.kind_of_critic.update and self.on != "auto":
            raise UserError(
                f"{self.name}: critic {self.critic} has states of its own; leave on out"
            )
        if self.adaptive and self.lambda_ != 1:
            raise UserError(f"{self.name}: adaptive makes lambda of the length; leave lambda_ out")
        if self.value_clip is not None and self.value_loss != "squared":
            raise UserError(f"{self.name}: value_clip is for value_loss = 'squared'")

    @classmethod
    def kind(cls) -> tuple[object, ...]:
        return *super().kind(), cls

    @property
    def kind_of_critic(self) -> Head:
        """What the critic is."""
        made: Head = spec.build("critic", self.critic, CRITICS)
        return made

    def depth(self, lowest: int, lowest_ever: int, splits: bool) -> int | None:
        """The layer whose input the critic reads; None: the policy's last states, or its own.

        `lowest` trains now, `lowest_ever` at some time.
        """
        there = lowest_ever > 0 and splits
        if self.on == "trunk" and not there:
            why = "may train all layers" if splits else "is run by the library's whole forward"
            raise UserError(
                f"{self.name}: on='trunk' reads frozen layers, and this model {why}: on='last'"
            )
        own = bool(self.kind_of_critic.update)
        return lowest if there and self.on != "last" and not own else None

    def credit(self, returns_N: Tensor, groups: Sequence[Group]) -> Tensor:
        """Advantages [N], before whitening, of what each token is followed by.

        A completion without values has 0 for each.
        """
        rows = [c for group in groups for c in group.completions]
        values = [v for c in rows for v in (c.values or (0.0,) * len(c.tokens))]
        ahead_N, lengths = returns_N - returns_N.new_tensor(values), [len(c.tokens) for c in rows]
        if self.lambda_ == 1 and not self.adaptive:
            return ahead_N
        found = [
            parts.discounted(row_T, self.decay(len(row_T))) for row_T in ahead_N.split(lengths)
        ]
        return torch.cat(found)

    def decay(self, length: int) -> float:
        """The lambda of a completion of so many tokens."""
        return max(0.0, 1 - 1 / (self.adaptive * length)) if self.adaptive else self.lambda_

    def values(self, read_N: Tensor) -> Tensor:
        """The values [N] of what the critic's reader gives."""
        return read_N.sigmoid() if self.value_loss == "bce" else read_N

    def fit(self, read_N: Tensor, returns_N: Tensor, before_N: Tensor) -> Tensor:
        """The critic's loss of each token [N]; `before_N` are the values that the policy used."""
        if self.value_loss == "bce":
            loss: Any = nn.functional.binary_cross_entropy_with_logits
            found: Tensor = loss(read_N, returns_N, reduction="none")
            return found
        return parts.squared(read_N, returns_N, before_N, self.value_clip)
