"""PPO: advantages against the values of a critic.

    D_t = R_t - V_t,   A_t = D_t - D_{t+1} + lambda A_{t+1}     (GAE, gamma 1, both 0 after the end)

R_t is what token t is followed by: the reward of its completion, less the KL from t on if that is in the
reward. V_t is read where token t is predicted, the first at the last token of the prompt. The end is
terminal, also of a completion that was cut. A is whitened over all tokens of the batch. The target of V_t
is R_t, whatever the lambda. `training.critic` has the weights and says how they learn.

PPO: arXiv 1707.06347, GAE: 1506.02438. Departures: the critic has no trained layer in common with the
policy, and its loss, half of the squared error, is not clipped. It begins as the mean reward of the first
rollout, learns alone in `warmup` rollouts, and where its values explain nothing (`gate`, as EVPO) the mean
return is taken.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from modicum.limits import Limits, Share
from modicum.objectives import parts
from modicum.objectives.base import MOST, Clipping
from modicum.types import Group, UserError

On = Literal["auto", "trunk", "last"]
READS = re.compile(r"head|mlp(\((width=)?(?P<width>[1-9]\d*)\))?")
WIDTH = 256  # of the hidden layer of an mlp, unless it says another


@dataclass(frozen=True)
class Ppo(Clipping):
    """PPO (arXiv 1707.06347): less a critic's value of each token, whitened over the batch."""

    whitened: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    has_critic: ClassVar[bool] = True
    advantages = staticmethod(lambda rewards_PG: rewards_PG.nan_to_num(0.0))

    critic: str = field(default="head", kw_only=True)
    on: On = field(default="auto", kw_only=True)
    lambda_: Share = field(default=1.0, kw_only=True)
    adaptive: Share = field(default=0.0, kw_only=True)
    warmup: Annotated[int, Limits(0, 10**6)] = field(default=10, kw_only=True)
    passes: Annotated[int, Limits(1, 100)] = field(default=2, kw_only=True)
    rate: Annotated[float | None, Limits(0, 1, above=True)] = field(default=None, kw_only=True)
    max_norm: Annotated[float, Limits(0, MOST)] = field(default=1.0, kw_only=True)
    gate: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.owns and self.on != "auto":
            raise UserError(f"{self.name}: {self.critic} has states of its own; leave on out")
        if self.adaptive and self.lambda_ != 1:
            raise UserError(f"{self.name}: adaptive makes lambda of the length; leave lambda_ out")

    @classmethod
    def kind(cls) -> tuple[object, ...]:
        return *super().kind(), cls

    @property
    def owns(self) -> bool:
        """Whether the critic has a model of its own, which `critic` is the update of."""
        return READS.fullmatch(self.critic) is None

    def reader(self, size: int) -> nn.Sequential:
        """What makes a value of a state of such a size."""
        found = READS.fullmatch(self.critic)
        if not self.critic.startswith("mlp") or not found:
            return nn.Sequential(nn.Linear(size, 1))
        width = int(found["width"] or WIDTH)
        return nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, 1))

    def depth(self, lowest: int, lowest_ever: int, splits: bool) -> int | None:
        """The layer whose input is read, by the lowest that train now and ever; None: last states."""
        there = lowest_ever > 0 and splits
        if self.on == "trunk" and not there:
            why = "may train all layers" if splits else "is run whole, by the library"
            raise UserError(f"{self.name}: on='trunk' reads frozen layers, and this model {why}")
        return lowest if there and self.on != "last" and not self.owns else None

    def credit(self, returns_N: Tensor, groups: Sequence[Group]) -> Tensor:
        """Advantages [N] before whitening; a completion without values has 0 for each."""
        rows = [c for group in groups for c in group.completions]
        values = [value for c in rows for value in c.values or (0.0,) * len(c.tokens)]
        ahead = (returns_N - returns_N.new_tensor(values)).split([len(c.tokens) for c in rows])
        return torch.cat([parts.discounted(row_T, self.decay(len(row_T))) for row_T in ahead])

    def decay(self, length: int) -> float:
        """The lambda of a completion of so many tokens."""
        return max(0.0, 1 - 1 / (self.adaptive * length)) if self.adaptive else self.lambda_
