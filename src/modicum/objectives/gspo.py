"""GSPO (arXiv 2507.18071): one ratio for a whole completion, clipped as one.

    s_i = exp(mean_t (log pi - log pi_old)),   L_t = -min(s_i A_i, clip(s_i, 1-e, 1+e) A_i)

Its bounds are hundreds of times narrower than a token's. `policy/ratio_error` and
`policy/clip_fraction` are of the completions' ratios, each counted with its tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modicum.objectives.base import Clipped, LossExample, LossRow, Tokens


@dataclass(frozen=True)
class Gspo(Clipped):
    """GSPO: the ratio of a completion is the geometric mean over its tokens."""

    name: ClassVar[str] = "gspo"
    example: ClassVar[LossExample] = LossExample(
        settings="kl=0.1",
        rewards=(1.0, 0.0, 0.0, 0.0),
        advantages=(1.49970006, -0.49990002, -0.49990002, -0.49990002),
        rows=(
            LossRow(1.0, (-1.0, -2.0, -0.5), (-0.99, -2.02, -0.46), (-1.0, -1.5, -0.5)),
            LossRow(-1.0, (-1.0, -2.0, -0.5), (-0.99, -2.02, -0.46), (-1.0, -1.5, -0.5)),
            LossRow(0.5, (-1.0, -0.5), (-1.0001, -0.4999), (-1.0, -0.5)),
        ),
        loss=-0.119873,
        gradient=(
            8.29e-05,
            -0.0056836,
            0.0003268,
            0.0842538,
            0.0784873,
            0.0844976,
            -0.0625013,
            -0.0624988,
        ),
    )
    whole_rows: ClassVar[bool] = True
    clip: float = 3e-4
    clip_high: float | None = 4e-4

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        """The mean over the tokens of each row."""
        return tokens.row_means(policy_N - tokens.old_N)
