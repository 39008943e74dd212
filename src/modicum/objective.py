"""Advantages, losses and the KL estimate: pure tensor functions.

    A_i  = (r_i - mean(r)) / (std(r) + 1e-4)                   group of G, ddof 1
    L    = aggregate_t[ -min(rho A, clip(rho, 1-e, 1+e) A) + beta k3 ]
    k3   = exp(x) - x - 1,   x = log pi_ref - log pi_theta

An objective is a value: a scale for the advantages, clip bounds, the KL weight, and how
token losses are added up. Token losses are divided by counts of the whole batch
(`Batch.num_rows`, `Batch.num_tokens`), so micro-batches do not change the result.
Sources: GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476).
Departures: DAPO's dynamic sampling and overlong penalty are not part of the loss.

Shapes: P problem, G member of a group, N completion tokens of some rows laid end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from modicum import spec
from modicum.types import UserError

Scale = Literal["std", "none"]
Aggregate = Literal["sequence_mean", "token_mean", "constant"]
SAME_REWARD = 1e-8  # rewards closer than this are the same reward


def group_advantages(rewards_PG: Tensor, scale: Scale = "std", epsilon: float = 1e-4) -> Tensor:
    """Advantages [P, G] of rewards [P, G] within each group.

    NaN rewards (no verdict) are left out of the mean and get advantage 0. A group whose
    rewards are all equal gets exactly 0.
    """
    known = ~rewards_PG.isnan()
    count_P1 = known.sum(1, keepdim=True)
    filled = rewards_PG.nan_to_num(0.0)
    centred = (filled - filled.sum(1, keepdim=True) / count_P1.clamp(min=1)) * known
    low = filled.masked_fill(~known, float("inf")).amin(1, keepdim=True)
    high = filled.masked_fill(~known, float("-inf")).amax(1, keepdim=True)
    centred = torch.where(high - low > SAME_REWARD, centred, torch.zeros_like(centred))
    if scale == "none":
        return centred
    variance_P1 = centred.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    return centred / (variance_P1.sqrt() + epsilon)


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


def weights(lengths: Tensor, how: Aggregate, num_rows: int, num_tokens: int, limit: int) -> Tensor:
    """The weight of every token's loss, [N] for rows of `lengths` laid end to end.

    sequence_mean: mean over each row's tokens, then over rows. token_mean: mean over all
    tokens of the batch. constant: sum over tokens / (rows x limit).
    """
    lengths_N = torch.repeat_interleave(lengths, lengths)
    if how == "sequence_mean":
        return 1.0 / (lengths_N * max(1, num_rows))
    divisor = num_tokens if how == "token_mean" else num_rows * limit
    return torch.full_like(lengths_N, 1.0 / max(1, divisor), dtype=torch.float32)


@dataclass(frozen=True)
class Tokens:
    """What a loss needs to know of N completion tokens laid end to end, row after row."""

    old_N: Tensor
    """Log-probs at sampling."""
    advantages_N: Tensor
    """The advantage of each token's row."""
    reference_N: Tensor | None
    """Log-probs under the reference; None without a KL term."""
    weights_N: Tensor
    """From `weights`."""

    def part(self, where: slice) -> Tokens:
        """Some of the tokens."""
        reference_N = None if self.reference_N is None else self.reference_N[where]
        rest = (self.old_N[where], self.advantages_N[where], reference_N, self.weights_N[where])
        return Tokens(*rest)


class Objective(Protocol):
    """A loss for group-relative policy optimisation."""

    kl: float
    scale: Scale
    aggregate: Aggregate
    clip: float
    clip_high: float | None


@dataclass(frozen=True)
class _Objective(spec.Spec):
    def __post_init__(self) -> None:
        clip, kl = getattr(self, "clip", 0.2), getattr(self, "kl", 0.0)
        if not clip > 0:
            raise UserError(f"{self.name}: clip must be above 0, not {clip}")
        if kl < 0:
            raise UserError(f"{self.name}: kl must not be negative, not {kl}")


@dataclass(frozen=True)
class Grpo(_Objective):
    """GRPO: advantages over the group's standard deviation, mean over each completion."""

    name: ClassVar[str] = "grpo"
    scale: ClassVar[Scale] = "std"
    aggregate: ClassVar[Aggregate] = "sequence_mean"
    kl: float = 0.0
    clip: float = 0.2
    clip_high: float | None = None


@dataclass(frozen=True)
class DrGrpo(_Objective):
    """Dr. GRPO: no division by the deviation, a constant length instead of each row's own."""

    name: ClassVar[str] = "dr_grpo"
    scale: ClassVar[Scale] = "none"
    aggregate: ClassVar[Aggregate] = "constant"
    kl: float = 0.0
    clip: float = 0.2
    clip_high: float | None = None


@dataclass(frozen=True)
class Dapo(_Objective):
    """DAPO's loss: mean over all tokens of the batch, a wider clip upwards, no KL."""

    name: ClassVar[str] = "dapo"
    scale: ClassVar[Scale] = "std"
    aggregate: ClassVar[Aggregate] = "token_mean"
    kl: float = 0.0
    clip: float = 0.2
    clip_high: float | None = 0.28


OBJECTIVES: dict[str, type] = {cls.name: cls for cls in (Grpo, DrGrpo, Dapo)}


def parse(text: str) -> Objective:
    """The objective that an expression such as `grpo(kl=0.04)` names."""
    return spec.build("objective", text, OBJECTIVES)


def loss(
    objective: Objective, policy_N: Tensor, tokens: Tokens
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of some rows (to be summed over micro-batches) and its sums for the log.

    The sums, over tokens: `clipped` (ratio outside its bounds where that cuts the
    gradient), `kl`, `ratio_error` (|rho - 1|).
    """
    # An infinite ratio times a zero advantage, or a zero gradient, would be NaN.
    ratio_N = torch.exp((policy_N - tokens.old_N).clamp(max=20))
    high = objective.clip if objective.clip_high is None else objective.clip_high
    surrogate_N = clipped(ratio_N, tokens.advantages_N, objective.clip, high)
    losses_N = -surrogate_N
    sums = {
        "clipped": (surrogate_N < ratio_N * tokens.advantages_N).sum(),
        "ratio_error": (ratio_N.detach() - 1).abs().sum(),
        "kl": torch.zeros((), device=policy_N.device),
    }
    if tokens.reference_N is not None:
        kl_N = kl3(policy_N, tokens.reference_N)
        losses_N = losses_N + objective.kl * kl_N
        sums["kl"] = kl_N.detach().sum()
    return (losses_N * tokens.weights_N).sum(), sums
