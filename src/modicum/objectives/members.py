"""The members: what each has of its own. docs/objectives.md explains them side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from modicum.objectives import parts
from modicum.objectives.base import MOST, Clipping, Counts, Cut, KlForm, Objective, Tokens

MOST_RATIO = 1e4  # of a token that is masked by its probability and not by its ratio


@dataclass(frozen=True)
class _Centred(Objective):
    """Advantages that are not divided by the deviation."""

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return parts.centred(rewards_PG)[0]


@dataclass(frozen=True)
class _TokenMean(Objective):
    """The mean over all tokens of the batch."""

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return parts.constant(lengths_R, counts.num_tokens)


@dataclass(frozen=True)
class Grpo(Clipping):
    """GRPO: advantages over the group's standard deviation, mean over each completion.

    arXiv 2402.03300.
    """


@dataclass(frozen=True)
class DrGrpo(_Centred, Clipping):
    """Dr. GRPO: no division by the deviation, a constant length instead of each row's own.

    arXiv 2503.20783: GRPO without its two normalisations.
    """

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return parts.constant(lengths_R, counts.num_rows * counts.max_tokens)


@dataclass(frozen=True)
class Dapo(_TokenMean, Clipping):
    """DAPO's loss: mean over all tokens of the batch, a wider clip upwards, no KL.

    arXiv 2503.14476. Its dynamic sampling and overlong penalty are not part of the loss.
    """

    clip_high: float | None = 0.28


@dataclass(frozen=True)
class Rloo(DrGrpo):
    """RLOO: advantages against the mean of the other completions, a constant length.

        A_i = r_i - mean_{j != i} r_j = K / (K - 1) (r_i - mean(r)),   K known rewards

    arXiv 2402.14740. Departures: the paper has no clip, which changes nothing in the first
    update on a batch; its sum over tokens is divided by rows times the longest possible length.
    """

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        centred_PG, count_P1 = parts.centred(rewards_PG)
        return centred_PG * (count_P1 / (count_P1 - 1).clamp(min=1))


@dataclass(frozen=True)
class Maxrl(_TokenMean, Clipping):
    """MaxRL: advantages over the mean of the group, so that a rare success counts most.

        A_i = (r_i - mean(r)) / mean(r),   0 where mean(r) <= 1e-8

    arXiv 2602.02710. Of a mixed reward the mean would be that of the format: give it accuracy only.
    """

    accuracy_only: ClassVar[bool] = True

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        centred_PG, _ = parts.centred(rewards_PG)
        mean_P1 = rewards_PG.nanmean(1, keepdim=True).nan_to_num(0.0)
        some_P1 = mean_P1 > parts.SAME_REWARD
        return torch.where(some_P1, centred_PG / mean_P1.where(some_P1, 1.0), 0.0)


@dataclass(frozen=True)
class Gspo(Clipping):
    """GSPO: the ratio of a completion is the geometric mean over its tokens.

        s_i = exp(mean_t (log pi - log pi_old)),   L_t = -min(s_i A_i, clip(s_i, 1-e, 1+e) A_i)

    arXiv 2507.18071. Its bounds are hundreds of times narrower than a token's.
    `policy/ratio_error` and `policy/clip_fraction` are of the completions' ratios, each counted
    with its tokens.
    """

    whole_rows: ClassVar[bool] = True
    clip: float = 3e-4
    clip_high: float | None = 4e-4

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        """The mean over the tokens of each row, which must be whole."""
        _, row_N, size_R = tokens.row_N.unique_consecutive(return_inverse=True, return_counts=True)
        ratios_N = policy_N - tokens.old_N
        sums_R = ratios_N.new_zeros(len(size_R)).index_add(0, row_N, ratios_N)
        return (sums_R / size_R)[row_N]


@dataclass(frozen=True)
class Cispo(_TokenMean):
    """CISPO: log-probs weighted by the ratio, which has a cap; no token loses its gradient.

        L_t = -sg[min(rho, cap)] A log pi

    arXiv 2506.13585. `cap` is the largest ratio itself (as TRL's epsilon_high; verl's is cap - 1).
    """

    limits = Objective.limits | {"cap": (1, MOST)}
    cap: float = 5.0

    def surrogate(self, ratio_N: Tensor, policy_N: Tensor, tokens: Tokens) -> Cut:
        capped_N = ratio_N.detach().clamp(max=self.cap)
        return capped_N * tokens.advantages_N * policy_N, ratio_N > self.cap


@dataclass(frozen=True)
class Sapo(_TokenMean):
    """SAPO: a soft gate around ratio 1 in the place of a clip.

        L_t = -(4 / tau) sigma(tau (rho - 1)) A,   tau: `rising` if A > 0, else `falling`

    arXiv 2511.20347. It cuts no token: `policy/clip_fraction` is 0.
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
class Ipo(_Centred, _TokenMean):
    """IPO of prime-rl: no gradient where the probability has moved by more than `eps`.

        L_t = -rho A where |pi - pi_old| <= eps, else 0

    Not the preference loss of that name. Masked tokens stay in the denominator and are counted in
    `policy/clip_fraction`. The ratio is cut at 1e4; prime-rl's term to the old policy is left out.
    """

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
    """DPPO: as `ipo`, but only what the advantage would push further is masked.

    arXiv 2602.04879, by the total variation of a token (its binary form).
    """

    eps: float = 0.2

    def masked(self, change_N: Tensor, advantages_N: Tensor) -> Tensor:
        return change_N * advantages_N.sign() > self.eps


@dataclass(frozen=True)
class ReinforcePp(_TokenMean, Clipping):
    """REINFORCE++: no baseline of a group; returns are whitened over all tokens of the batch.

        R_t = r - beta sum_{s >= t} k1_s,   A_t = (R_t - mean(R)) / std(R)       (ddof 1)

    arXiv 2501.03262. One completion a problem is enough. A group of equal rewards still pushes.
    """

    whitened: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    kl: float = 0.01
    kl_form: KlForm = field(default="k1_reward", kw_only=True)

    def signal(self, rewards_PG: Tensor) -> Tensor:
        """All groups with a verdict, where the rewards of the batch differ."""
        return ~rewards_PG.isnan().all(1) & parts.has_signal(rewards_PG.reshape(1, -1))

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return rewards_PG.nan_to_num(0.0)


@dataclass(frozen=True)
class ReinforcePpBaseline(_Centred, _TokenMean, Clipping):
    """REINFORCE++-baseline: rewards less the mean of their group, whitened over all tokens.

    arXiv 2501.03262; its KL is k2 in the loss. A group of equal rewards still pushes.
    """

    whitened: ClassVar[bool] = True
    kl: float = 0.01
    kl_form: KlForm = field(default="k2", kw_only=True)


PLAIN = (Grpo, DrGrpo, Dapo, Rloo, Maxrl, Gspo, Cispo, Sapo, Ipo, Dppo)
OBJECTIVES: dict[str, type[Objective]] = {
    cls.name: cls for cls in (*PLAIN, ReinforcePp, ReinforcePpBaseline)
}
