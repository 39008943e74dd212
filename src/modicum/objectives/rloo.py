"""RLOO (arXiv 2402.14740): each reward less the mean of the others of its group.

    A_i = r_i - mean_{j != i} r_j = K / (K - 1) (r_i - mean(r)),   K known rewards

Departures: the paper has no clip, which changes nothing in the first update on a batch;
its sum over tokens is divided by rows times the longest possible length.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modicum.objectives.base import Clipped, Counts, LossExample, centred, constant_length


@dataclass(frozen=True)
class Rloo(Clipped):
    """RLOO: advantages against the mean of the other completions, a constant length."""

    name: ClassVar[str] = "rloo"
    example: ClassVar[LossExample] = LossExample(
        settings="kl=0.1",
        rewards=(1.0, 0.0, 0.0, 0.0),
        advantages=(1.0, -0.33333333, -0.33333333, -0.33333333),
        loss=-0.1495389,
        gradient=(-0.082412, -0.0616891, 0.0009874, 0.0314414, -0.0017493, 0.0254758, -0.0032436),
    )

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        centred_PG, count_P1 = centred(rewards_PG)
        return centred_PG * (count_P1 / (count_P1 - 1).clamp(min=1))

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return constant_length(lengths_R, counts)
