"""GRPO (arXiv 2402.03300): the group's deviation scales, each completion counts the same."""

from dataclasses import dataclass
from typing import ClassVar

from modicum.objectives.base import Clipped, LossExample


@dataclass(frozen=True)
class Grpo(Clipped):
    """GRPO: advantages over the group's standard deviation, mean over each completion."""

    name: ClassVar[str] = "grpo"
    example: ClassVar[LossExample] = LossExample(
        settings="kl=0.1",
        rewards=(1.0, 0.0, 0.0, 0.0),
        advantages=(1.49970006, -0.49990002, -0.49990002, -0.49990002),
        loss=-0.1069292,
        gradient=(-0.1373533, -0.1028151, 0.0016457, 0.1572071, -0.0043732, 0.0636895, -0.016218),
    )
