"""The members: what each has of its own. docs/objectives.md explains them side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from modicum.objectives import parts
from modicum.objectives.base import MOST, Clipping, Cut, KlForm, Objective, Tokens

MOST_RATIO = 1e4  # of a token that is masked by its probability and not by its ratio


@dataclass(frozen=True)
class Grpo(Clipping):
    """GRPO (arXiv 2402.03300): over the group's standard deviation, mean over each completion."""

    weights = staticmethod(parts.row_mean)


@dataclass(frozen=True)
class DrGrpo(Clipping):
    """Dr. GRPO (arXiv 2503.20783): no deviation, a constant length instead of each row's own."""

    advantages = staticmethod(parts.difference)
    weights = staticmethod(parts.longest_mean)


@dataclass(frozen=True)
class Dapo(Clipping):
    """DAPO's loss (arXiv 2503.14476): mean over all tokens of the batch, a wider clip upwards.

    Its dynamic sampling and overlong penalty are not part of the loss.
    """

    clip_high: float | None = 0.28


@dataclass(frozen=True)
class Rloo(DrGrpo):
    """RLOO (arXiv 2402.14740): against the mean of the other completions, a constant length.

    Departures: the paper has no clip, which changes nothing in the first update on a batch; its
    sum over tokens is divided by rows times the longest possible length.
    """

    advantages = staticmethod(parts.leave_one_out)


@dataclass(frozen=True)
class Maxrl(Clipping):
    """MaxRL (arXiv 2602.02710): over the group's mean, so that a rare success counts most.

    Of a mixed reward the mean would be mostly that of the format: give it accuracy only.
    """

    accuracy_only: ClassVar[bool] = True
    advantages = staticmethod(parts.over_mean)


@dataclass(frozen=True)
class Gspo(Clipping):
    """GSPO: the ratio of a completion is the geometric mean over its tokens.

        s_i = exp(mean_t (log pi - log pi_old)),   L_t = -min(s_i A_i, clip(s_i, 1-e, 1+e) A_i)

    arXiv 2507.18071. Its bounds are hundreds of times narrower than a token's.
    `policy/ratio_error` and `policy/clip_fraction` are of the completions' ratios, each counted
    with its tokens.
    """

    whole_rows: ClassVar[bool] = True
    weights = staticmethod(parts.row_mean)
    clip: float = 3e-4
    clip_high: float | None = 4e-4

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        """The mean over the tokens of each row, which must be whole."""
        _, row_N, size_R = tokens.row_N.unique_consecutive(return_inverse=True, return_counts=True)
        ratios_N = policy_N - tokens.old_N
        sums_R = ratios_N.new_zeros(len(size_R)).index_add(0, row_N, ratios_N)
        return (sums_R / size_R)[row_N]


@dataclass(frozen=True)
class Cispo(Objective):
    """CISPO (arXiv 2506.13585): L_t = -sg[min(rho, cap)] A log pi; no token loses its gradient.

    `cap` is the largest ratio itself (as TRL's epsilon_high; verl's is cap - 1).
    """

    limits = Objective.limits | {"cap": (1, MOST)}
    cap: float = 5.0

    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        capped_N = ratio_N.detach().clamp(max=self.cap)
        return capped_N * tokens.advantages_N * policy_N, ratio_N > self.cap


@dataclass(frozen=True)
class Sapo(Objective):
    """SAPO (arXiv 2511.20347): L_t = -(4 / tau) sigma(tau (rho - 1)) A, a soft gate for a clip.

    tau is `rising` where A > 0, else `falling`. No token is cut: `policy/clip_fraction` is 0.
    """

    limits = Objective.limits | {"rising": (0, MOST, True), "falling": (0, MOST, True)}
    rising: float = 1.0
    falling: float = 1.05

    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        up_N = tokens.advantages_N > 0
        tau_N = torch.where(up_N, self.rising, self.falling).to(ratio_N.dtype)
        gate_N = torch.sigmoid(tau_N * (ratio_N - 1)) * 4 / tau_N
        return gate_N * tokens.advantages_N, torch.zeros_like(up_N)


@dataclass(frozen=True)
class Ipo(Objective):
    """IPO of prime-rl: L_t = -rho A where |pi - pi_old| <= eps, else 0.

    Not the preference loss of that name. Masked tokens stay in the denominator and are counted in
    `policy/clip_fraction`. The ratio is cut at 1e4; prime-rl's term to the old policy is left out.
    """

    advantages = staticmethod(parts.difference)
    limits = Objective.limits | {"eps": (0, 1, True, True)}
    eps: float = 0.3

    def masked(self, change_N: Tensor, advantages_N: Tensor) -> Tensor:
        """Which tokens train no more, of the change of their probability."""
        return change_N.abs() > self.eps

    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        # Cut in value, not in gradient: a rare token that became likely is not dropped.
        capped_N = ratio_N.detach().clamp(max=MOST_RATIO) * (policy_N - policy_N.detach()).exp()
        masked_N = self.masked(parts.change(policy_N, tokens.old_N), tokens.advantages_N)
        return (capped_N * tokens.advantages_N).masked_fill(masked_N, 0.0), masked_N


@dataclass(frozen=True)
class Dppo(Ipo):
    """DPPO (arXiv 2602.04879, binary): as `ipo`, but masks only what A would push further."""

    eps: float = 0.2

    def masked(self, change_N: Tensor, advantages_N: Tensor) -> Tensor:
        return change_N * advantages_N.sign() > self.eps


@dataclass(frozen=True)
class ReinforcePp(Clipping):
    """REINFORCE++ (arXiv 2501.03262): R_t = r - beta sum_{s >= t} k1_s, whitened over the batch.

    One completion a problem is enough. A group of equal rewards still pushes.
    """

    whitened: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    advantages = staticmethod(parts.plain)
    kl: float = 0.01
    kl_form: KlForm = field(default="k1_reward", kw_only=True)


@dataclass(frozen=True)
class ReinforcePpBaseline(Clipping):
    """REINFORCE++-baseline (arXiv 2501.03262): less the group's mean, whitened over the batch.

    Its KL is k2 in the loss. A group of equal rewards still pushes.
    """

    whitened: ClassVar[bool] = True
    advantages = staticmethod(parts.difference)
    kl: float = 0.01
    kl_form: KlForm = field(default="k2", kw_only=True)


MEMBERS = (Grpo, DrGrpo, Dapo, Rloo, Maxrl, Gspo, Cispo, Sapo, Ipo, Dppo, ReinforcePp)
OBJECTIVES: dict[str, type[Objective]] = {c.name: c for c in (*MEMBERS, ReinforcePpBaseline)}
