"""GRPO (arXiv 2402.03300): the group's deviation scales, each completion counts the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modicum.objectives.base import (
    Clipped,
    Counts,
    Example,
    ExampleRow,
    over_deviation,
    sequence_mean,
)


@dataclass(frozen=True)
class Grpo(Clipped):
    """GRPO: advantages over the group's standard deviation, mean over each completion."""

    name: ClassVar[str] = "grpo"
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
        loss=-0.1069292,
        gradient=(-0.1373533, -0.1028151, 0.0016457, 0.1572071, -0.0043732, 0.0636895, -0.016218),
    )

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return over_deviation(rewards_PG)

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return sequence_mean(lengths_R, counts)
