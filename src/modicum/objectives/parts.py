"""Parts of objectives: advantages, weights, surrogates, KL; functions that know no member.

Shapes: P problem, G member of a group, R row, N completion tokens of some rows laid end to end."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

SAME_REWARD = 1e-8  # rewards closer than this are the same reward
MOST_NATS = 20.0  # of a log-ratio: e^20 times as likely is a large number, e^100 is infinite
LEAST_SPREAD = 1e-4  # of what is whitened; below it there is rounding alone


class Counts(NamedTuple):
    """Counts of the whole batch that was sampled, before any row was left out."""

    num_rows: int
    num_tokens: int
    max_tokens: int  # the longest that a completion may be


def centred(rewards_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards [P, G] less the mean of their group, and how many of it are known, [P, 1].
    NaN rewards (no verdict) are left out of the mean and get 0. A group whose rewards are
    all equal gets exactly 0."""
    known = ~rewards_PG.isnan()
    count_P1 = known.sum(1, keepdim=True)
    filled = rewards_PG.nan_to_num(0.0)
    centred = (filled - filled.sum(1, keepdim=True) / count_P1.clamp(min=1)) * known
    return torch.where(has_signal(rewards_PG)[:, None], centred, 0.0), count_P1


def difference(rewards_PG: Tensor) -> Tensor:
    """Centred rewards [P, G], over nothing."""
    return centred(rewards_PG)[0]


def over_deviation(rewards_PG: Tensor) -> Tensor:
    """Centred rewards [P, G] over the standard deviation (ddof 1) of their group, plus 1e-4."""
    centred_PG, count_P1 = centred(rewards_PG)
    variance_P1 = centred_PG.square().sum(1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    return centred_PG / (variance_P1.sqrt() + 1e-4)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """Rewards [P, G] less the mean of the others: K / (K - 1) times the centred, of K known."""
    centred_PG, count_P1 = centred(rewards_PG)
    return centred_PG * (count_P1 / (count_P1 - 1).clamp(min=1))


def over_mean(rewards_PG: Tensor) -> Tensor:
    """Centred rewards [P, G] over the mean of their group; 0 where it is at most 1e-8."""
    mean_P1 = rewards_PG.nanmean(1, keepdim=True).nan_to_num(0.0)
    some_P1 = mean_P1 > SAME_REWARD
    return torch.where(some_P1, centred(rewards_PG)[0] / mean_P1.where(some_P1, 1.0), 0.0)


def has_signal(rewards_PG: Tensor) -> Tensor:
    """Whether the known rewards of each group differ, [P]."""
    unknown = rewards_PG.isnan()
    low = rewards_PG.masked_fill(unknown, float("inf")).amin(1)
    high = rewards_PG.masked_fill(unknown, float("-inf")).amax(1)
    return high - low > SAME_REWARD


def to_go(values_N: Tensor, lengths: list[int]) -> Tensor:
    """The sum of each token's value and of those after it in its row, [N]."""
    return torch.cat([row.flip(0).cumsum(0).flip(0) for row in values_N.split(lengths)])


def discounted(ahead_T: Tensor, decay: float) -> Tensor:
    """A_t = D_t - D_{t+1} + decay A_{t+1} of a row's D [T], both 0 after its end."""
    found, later, after = list[float](), 0.0, 0.0
    for ahead in reversed(ahead_T.tolist()):
        later, after = ahead - after + decay * later, ahead
        found.append(later)
    return ahead_T.new_tensor(found[::-1])


def explained(values_N: Tensor, returns_N: Tensor) -> float:
    """1 - Var(R - V) / Var(R); 0 where all returns are equal."""
    if not len(returns_N) or returns_N.max() - returns_N.min() <= SAME_REWARD:
        return 0.0
    return float(1 - (returns_N - values_N).var(correction=0) / returns_N.var(correction=0))


def whitened(values_N: Tensor, known_N: Tensor) -> Tensor:
    """Known values less their mean, over their standard deviation (ddof 1); 0 where unknown."""
    known = values_N[known_N]
    if len(known) < 2 or known.max() - known.min() <= SAME_REWARD:
        return torch.zeros_like(values_N)
    return (values_N - known.mean()) / known.std().clamp(min=LEAST_SPREAD) * known_N


def row_mean(lengths_R: Tensor, counts: Counts) -> Tensor:
    """Weights [N] of a mean over each row's tokens, then over all rows."""
    return 1.0 / (torch.repeat_interleave(lengths_R, lengths_R) * max(1, counts.num_rows))


def token_mean(lengths_R: Tensor, counts: Counts) -> Tensor:
    """Weights [N] of a mean over all tokens of the batch."""
    return _constant(lengths_R, counts.num_tokens)


def longest_mean(lengths_R: Tensor, counts: Counts) -> Tensor:
    """Weights [N] of a sum over each row over the longest possible length, then a mean over rows."""
    return _constant(lengths_R, counts.num_rows * counts.max_tokens)


def _constant(lengths_R: Tensor, divisor: int) -> Tensor:
    lengths_N = torch.repeat_interleave(lengths_R, lengths_R)
    return torch.full_like(lengths_N, 1.0 / max(1, divisor), dtype=torch.float32)


def clipped(ratio_N: Tensor, advantages_N: Tensor, low: float, high: float) -> Tensor:
    """The clipped surrogate min(rho A, clip(rho, 1-low, 1+high) A), to be maximised."""
    bounded = ratio_N.clamp(1 - low, 1 + high)
    return torch.minimum(ratio_N * advantages_N, bounded * advantages_N)


def change(policy_N: Tensor, old_N: Tensor) -> Tensor:
    """The change of each token's probability, pi - pi_old, from log-probs, without a gradient."""
    ratio_N = policy_N.detach() - old_N
    # Exact where both are near: exp(larger) * -expm1(smaller - larger).
    size_N = -torch.expm1(-ratio_N.abs()) * torch.maximum(policy_N.detach(), old_N).exp()
    return size_N * ratio_N.sign()


def kl3(policy_N: Tensor, reference_N: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) for each token, never negative.
    The log-ratio is bounded at 20 so that a token the reference likes e^100 times better
    gives a large number and not infinity."""
    difference = (reference_N - policy_N).clamp(-MOST_NATS, MOST_NATS)
    return torch.expm1(difference) - difference


def kl2(policy_N: Tensor, reference_N: Tensor) -> Tensor:
    """The k2 estimate, half of the squared log-ratio; beyond 20 nats it grows as a line."""
    return huber_loss(policy_N, reference_N, reduction="none", delta=MOST_NATS)


def kl_term(
    form: str, policy_N: Tensor, reference_N: Tensor, ratio_N: Tensor
) -> tuple[Tensor, Tensor]:
    """What a KL term of a form adds to the loss of each token, and its value for the log, [N].
    `ratio_N` is each token's to the old policy, without a gradient. With x = log pi_ref - log pi the
    coefficients on grad log pi (descent) are 1 - e^x (k3), -x (k2) and rho * -x (k3_corrected: k3
    without its bias); k1_reward acts through the advantages."""
    kl_N = {"k2": kl2, "k1_reward": torch.sub}.get(form, kl3)(policy_N, reference_N)
    if form == "k3_corrected":
        return ratio_N * kl2(policy_N, reference_N), kl_N
    return kl_N if form != "k1_reward" else torch.zeros_like(kl_N), kl_N
