"""DAPO's loss (arXiv 2503.14476).

Departures: its dynamic sampling and overlong penalty are not part of the loss.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modicum.objectives.base import Clipped, Counts, LossExample, token_mean


@dataclass(frozen=True)
class Dapo(Clipped):
    """DAPO's loss: mean over all tokens of the batch, a wider clip upwards, no KL."""

    name: ClassVar[str] = "dapo"
    example: ClassVar[LossExample] = LossExample(
        settings="kl=0.1",
        rewards=(1.0, 0.0, 0.0, 0.0),
        advantages=(1.49970006, -0.49990002, -0.49990002, -0.49990002),
        loss=-0.3399881,
        gradient=(-0.1831378, -0.1370868, -0.2054852, 0.0698698, -0.0038873, 0.0566129, -0.007208),
    )
    clip_high: float | None = 0.28

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return token_mean(lengths_R, counts)
