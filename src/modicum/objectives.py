"""Objectives: advantages, token losses, weights, and what they ask of the batch.

    A_i  = (r_i - mean(r)) / (std(r) + 1e-4)                   group of G, ddof 1
    L    = sum_t w_t [ -min(rho A, clip(rho, 1-e, 1+e) A) + beta k3 ]
    k3   = exp(x) - x - 1,   x = log pi_ref - log pi_theta

An objective is a frozen dataclass with methods. Weights are made from counts of the whole
batch, so that micro-batches do not change the result. `Objective` is what all members share;
the functions here are its parts.

To add one: an `Objective`, its row in OBJECTIVES, and in tests/test_objectives.py an example
worked out by hand, which the contract suite compares.

Shapes: P problem, G member of a group, R row, N completion tokens of some rows laid end to
end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from modicum import spec
from modicum.limits import Between, Limits
from modicum.types import Advantage, Group

MOST = 100.0  # of the upper bound of a ratio and of the weight of the KL term; usual: below 1
Above = Annotated[float | None, Limits(0, MOST, above=True)]
SAME_REWARD = 1e-8  # rewards closer than this are the same reward
Sums = dict[str, Tensor]
"""Sums over tokens, for the log."""


@dataclass(frozen=True)
class Counts:
    """Counts of the whole batch that was sampled, before any row was left out."""

    num_rows: int
    num_tokens: int
    max_tokens: int
    """The longest that a completion may be."""


@dataclass(frozen=True)
class Tokens:
    """What a loss needs to know of N completion tokens laid end to end, row after row."""

    old_N: Tensor
    """Log-probs at sampling."""
    advantages_N: Tensor
    """The advantage of each token; most objectives give all tokens of a row the same."""
    reference_N: Tensor | None
    """Log-probs under the reference; None if the objective needs none."""
    weights_N: Tensor
    """From `Objective.weights`."""
    row_N: Tensor
    """The number of each token's row, rising."""

    def part(self, where: slice) -> Tokens:
        """Some of the tokens."""
        known = {name: value[where] for name, value in vars(self).items() if value is not None}
        return replace(self, **known)


@dataclass(frozen=True)
class Objective(spec.Spec):
    """A loss for group-relative policy optimisation: PPO's clipped surrogate, and a k3 term to
    the reference if `kl` is above 0.

    Advantages and weights are GRPO's unless a member has its own.
    """

    whole_rows: ClassVar[bool] = False
    """Whether `token_loss` must see all tokens of a row at once."""

    kl: Annotated[float, Limits(0, MOST)] = 0.0
    # A ratio is above 0, so that a lower bound of 1 or more below 1 would bound nothing.
    clip: Between = 0.2
    clip_high: Above = None

    @property
    def needs_reference(self) -> bool:
        """Whether the loss looks at the reference's log-probs."""
        return self.kl > 0

    @property
    def droppable(self) -> bool:
        """Whether a row without advantage has no gradient, so that it need not be run."""
        return not self.needs_reference

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Advantages [P, G] of rewards [P, G]; NaN is no verdict and gets 0."""
        return over_deviation(rewards_PG)

    def row_advantages(
        self, groups: Sequence[Group], rewards_PG: Tensor
    ) -> Sequence[Sequence[Advantage]]:
        """The advantage of every row: one number, or one for each of its tokens."""
        return self.advantages(rewards_PG).tolist()

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        """The weight of every token's loss, [N], for rows of such lengths.

        Here that of a mean over each row's tokens, then over all rows.
        """
        lengths_N = torch.repeat_interleave(lengths_R, lengths_R)
        return 1.0 / (lengths_N * max(1, counts.num_rows))

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        """The log of the ratio of each token, [N]."""
        return policy_N - tokens.old_N

    def token_loss(self, policy_N: Tensor, tokens: Tokens) -> tuple[Tensor, Sums]:
        """The loss of every token, [N], unweighted, and sums for the log.

        The sums are `clipped` (tokens whose gradient the clip cuts), `kl` and `ratio_error`
        (|rho - 1|).
        """
        # An infinite ratio times a zero advantage, or a zero gradient, would be NaN.
        ratio_N = torch.exp(self.log_ratios(policy_N, tokens).clamp(max=20))
        high = self.clip if self.clip_high is None else self.clip_high
        surrogate_N = clipped(ratio_N, tokens.advantages_N, self.clip, high)
        losses_N = -surrogate_N
        sums = {
            "clipped": (surrogate_N < ratio_N * tokens.advantages_N).sum(),
            "ratio_error": (ratio_N.detach() - 1).abs().sum(),
            "kl": torch.zeros((), device=policy_N.device),
        }
        if tokens.reference_N is not None:
            kl_N = kl3(policy_N, tokens.reference_N)
            losses_N = losses_N + self.kl * kl_N
            sums["kl"] = kl_N.detach().sum()
        return losses_N, sums

    def loss(self, policy_N: Tensor, tokens: Tokens) -> tuple[Tensor, Sums]:
        """The weighted loss of some tokens, to be added up over the batch, and sums."""
        losses_N, sums = self.token_loss(policy_N, tokens)
        return (losses_N * tokens.weights_N).sum(), sums


# Parts -----------------------------------------------------------------------------------


def centred(rewards_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards [P, G] less the mean of their group, and how many of it are known, [P, 1].

    NaN rewards (no verdict) are left out of the mean and get 0. A group whose rewards are
    all equal gets exactly 0.
    """
    known = ~rewards_PG.isnan()
    count_P1 = known.sum(1, keepdim=True)
    filled = rewards_PG.nan_to_num(0.0)
    centred = (filled - filled.sum(1, keepdim=True) / count_P1.clamp(min=1)) * known
    zeros = torch.zeros_like(centred)
    return torch.where(has_signal(rewards_PG)[:, None], centred, zeros), count_P1


def over_deviation(rewards_PG: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Centred rewards [P, G] over the standard deviation (ddof 1) of their group."""
    centred_PG, count_P1 = centred(rewards_PG)
    variance_P1 = centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    return centred_PG / (variance_P1.sqrt() + epsilon)


def has_signal(rewards_PG: Tensor) -> Tensor:
    """Whether the known rewards of each group differ, [P]."""
    unknown = rewards_PG.isnan()
    low = rewards_PG.masked_fill(unknown, float("inf")).amin(1)
    high = rewards_PG.masked_fill(unknown, float("-inf")).amax(1)
    return high - low > SAME_REWARD


def clipped(ratio_N: Tensor, advantages_N: Tensor, low: float, high: float) -> Tensor:
    """The clipped surrogate min(rho A, clip(rho, 1-low, 1+high) A), to be maximised."""
    bounded = ratio_N.clamp(1 - low, 1 + high)
    return torch.minimum(ratio_N * advantages_N, bounded * advantages_N)


def kl3(policy_N: Tensor, reference_N: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) for each token, never negative.

    The log-ratio is bounded at 20 so that a token the reference likes e^100 times better
    gives a large number and not infinity.
    """
    difference = (reference_N - policy_N).clamp(-20, 20)
    return torch.expm1(difference) - difference


def constant(lengths_R: Tensor, divisor: int) -> Tensor:
    """The same weight for every token, [N]: that of a sum over all, divided."""
    lengths_N = torch.repeat_interleave(lengths_R, lengths_R)
    return torch.full_like(lengths_N, 1.0 / max(1, divisor), dtype=torch.float32)


# Members -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grpo(Objective):
    """GRPO: advantages over the group's standard deviation, mean over each completion.

    arXiv 2402.03300.
    """

    name: ClassVar[str] = "grpo"


@dataclass(frozen=True)
class DrGrpo(Objective):
    """Dr. GRPO: no division by the deviation, a constant length instead of each row's own.

    arXiv 2503.20783: GRPO without its two normalisations.
    """

    name: ClassVar[str] = "dr_grpo"

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return centred(rewards_PG)[0]

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return constant(lengths_R, counts.num_rows * counts.max_tokens)


@dataclass(frozen=True)
class Dapo(Objective):
    """DAPO's loss: mean over all tokens of the batch, a wider clip upwards, no KL.

    arXiv 2503.14476. Its dynamic sampling and overlong penalty are not part of the loss.
    """

    name: ClassVar[str] = "dapo"
    clip_high: Above = 0.28

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return constant(lengths_R, counts.num_tokens)


@dataclass(frozen=True)
class Rloo(DrGrpo):
    """RLOO: advantages against the mean of the other completions, a constant length.

        A_i = r_i - mean_{j != i} r_j = K / (K - 1) (r_i - mean(r)),   K known rewards

    arXiv 2402.14740. Departures: the paper has no clip, which changes nothing in the first
    update on a batch; its sum over tokens is divided by rows times the longest possible length.
    """

    name: ClassVar[str] = "rloo"

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        centred_PG, count_P1 = centred(rewards_PG)
        return centred_PG * (count_P1 / (count_P1 - 1).clamp(min=1))


@dataclass(frozen=True)
class Gspo(Objective):
    """GSPO: the ratio of a completion is the geometric mean over its tokens.

        s_i = exp(mean_t (log pi - log pi_old)),   L_t = -min(s_i A_i, clip(s_i, 1-e, 1+e) A_i)

    arXiv 2507.18071. Its bounds are hundreds of times narrower than a token's.
    `policy/ratio_error` and `policy/clip_fraction` are of the completions' ratios, each counted
    with its tokens.
    """

    name: ClassVar[str] = "gspo"
    whole_rows: ClassVar[bool] = True
    clip: Between = 3e-4
    clip_high: Above = 4e-4

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        """The mean over the tokens of each row, which must be whole."""
        _, row_N, size_R = tokens.row_N.unique_consecutive(return_inverse=True, return_counts=True)
        ratios_N = policy_N - tokens.old_N
        sums_R = ratios_N.new_zeros(len(size_R)).index_add(0, row_N, ratios_N)
        return (sums_R / size_R)[row_N]


OBJECTIVES: dict[str, type] = {cls.name: cls for cls in (Grpo, DrGrpo, Dapo, Rloo, Gspo)}


def parse(text: str) -> Objective:
    """The objective that an expression such as `grpo(kl=0.04)` names."""
    return spec.build("objective", text, OBJECTIVES)
