"""Dr. GRPO (arXiv 2503.20783): GRPO without its two normalisations."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modicum.objectives.base import Clipped, Counts, LossExample, centred, constant_length


@dataclass(frozen=True)
class DrGrpo(Clipped):
    """Dr. GRPO: no division by the deviation, a constant length instead of each row's own."""

    name: ClassVar[str] = "dr_grpo"
    example: ClassVar[LossExample] = LossExample(
        settings="kl=0.1",
        rewards=(1.0, 0.0, 0.0, 0.0),
        advantages=(0.75, -0.25, -0.25, -0.25),
        loss=-0.1495389,
        gradient=(-0.082412, -0.0616891, 0.0009874, 0.0314414, -0.0017493, 0.0254758, -0.0032436),
    )

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return centred(rewards_PG)[0]

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return constant_length(lengths_R, counts)
