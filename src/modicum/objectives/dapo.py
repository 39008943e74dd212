"""DAPO's loss (arXiv 2503.14476).

Departures: its dynamic sampling and overlong penalty are not part of the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modicum.objectives.base import Clipped, Counts, Example, ExampleRow, over_deviation, token_mean


@dataclass(frozen=True)
class Dapo(Clipped):
    """DAPO's loss: mean over all tokens of the batch, a wider clip upwards, no KL."""

    name: ClassVar[str] = "dapo"
    example: ClassVar[Example] = Example(
        settings="kl=0.1",
        rewards=(1.0, 0.0, 0.0, 0.0),
        advantages=(1.49970006, -0.49990002, -0.49990002, -0.49990002),
        rows=(
            ExampleRow(1.5, (-1.0, -2.0, -0.5), (-0.9, -2.3, -0.28), (-1.0, -1.5, -0.5)),
            ExampleRow(-0.5, (-1.2,), (-1.0,), (-1.2,)),
            ExampleRow(-0.5, (-0.7, -0.3), (-1.0, -0.3), (-0.7, -0.4)),
            ExampleRow(0.0, (-0.4,), (-0.6,), (-0.1,)),
        ),
        counts=Counts(num_rows=4, num_tokens=9, max_tokens=5),
        loss=-0.3399881,
        gradient=(-0.1831378, -0.1370868, -0.2054852, 0.0698698, -0.0038873, 0.0566129, -0.007208),
    )
    clip_high: float | None = 0.28

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return over_deviation(rewards_PG)

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return token_mean(lengths_R, counts)
