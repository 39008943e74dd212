"""The objectives: what each changes of `base.Objective`, which is GRPO's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modicum.objectives.base import Counts, Objective, Tokens, centred, constant


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
    clip_high: float | None = 0.28

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
    clip: float = 3e-4
    clip_high: float | None = 4e-4

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        """The mean over the tokens of each row, which must be whole."""
        _, row_N, size_R = tokens.row_N.unique_consecutive(return_inverse=True, return_counts=True)
        ratios_N = policy_N - tokens.old_N
        sums_R = ratios_N.new_zeros(len(size_R)).index_add(0, row_N, ratios_N)
        return (sums_R / size_R)[row_N]
