"""APOLLO (Zhu et al. 2024, arXiv 2412.05270): Adam's step sizes, guessed from a projection.

For a matrix with gradient G, a random P of r rows with entries from N(0, 1/r) takes the
smaller side to r numbers, R = P G (or G P^T), and Adam runs on R alone. How much Adam would
scale the columns (rows) of the larger side is read from R, and the gradient is scaled so:

    s_j = |Adam(R)_j| / |R_j|          W -= rate * sqrt(scale) * s_j G_j

APOLLO-Mini has rank 1 and one s for the whole matrix. The norm of s G may grow by 1 % a step
at most, as in Fira (arXiv 2410.01623). P is drawn anew every `every` steps from the run's
seed, the tensor's name and the number of the draw, and never stored: kept are the moments
of R, 2 r max(m, n) numbers in place of 2 m n.

s is too small by about sqrt(r / min(m, n)), which `scale` or the rate has to make good. The
limit is on norms before bias correction, as in the reference code, so that steps are about
half of Adam's around the tenth. Departures: a zero gradient does not count for the limit
(after one, hardly any step would be allowed); epsilon is added after the bias correction,
as torch does it. Embedding and head get plain AdamW.
"""

from dataclasses import dataclass
from hashlib import sha256
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from modicum.updates import lowrank
from modicum.updates.lowrank import LowRankMember, LowRankRule, Moment, State
from modicum.updates.rules import Rule

GROWTH = 1.01
TINY = 1e-8


@dataclass(frozen=True)
class ApolloRule(LowRankRule):
    """The gradient, scaled by channel or as a whole."""

    seed: int
    whole: bool
    """One factor for the whole matrix."""

    def kept(self, rows: int, columns: int) -> int:
        return 2 * self.rank * max(rows, columns)

    def start(self, matrix: Tensor) -> State:
        low = (self.rank, max(matrix.shape))
        return {"norm": torch.zeros((), device=matrix.device)} | lowrank.moments(low, matrix.device)

    def direction(self, moment: Moment) -> Tensor:
        wide, low = self._low(moment)
        factor = self._factor(low, lowrank.normalised(moment, low))
        scaled = wide * factor * self._limit(moment, _norm(wide * factor, None)) * sqrt(self.scale)
        return scaled if wide is moment.gradient else scaled.T

    def taken(self, moment: Moment) -> Tensor:
        wide, low = self._low(moment)
        scaled = wide * self._factor(low, lowrank.adam(moment))
        norm, bias = _norm(scaled, None), self._bias(moment)
        limit = moment.state["norm"].to(norm.device) / (norm * bias + (norm == 0))
        scaled = scaled * limit.clamp(max=1) * sqrt(self.scale)
        return scaled if wide is moment.gradient else scaled.T

    def _low(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """The gradient, its larger side last, and its projection."""
        gradient, (rows, columns) = moment.gradient, moment.gradient.shape
        wide = gradient if rows < columns else gradient.T
        return wide, self.projection(moment.name, moment.count, wide) @ wide

    def _factor(self, low: Tensor, scaled: Tensor) -> Tensor:
        """How much Adam scales each column, or the whole."""
        over = None if self.whole else 0
        return _norm(scaled, over) / (_norm(low, over) + TINY)

    def _bias(self, moment: Moment) -> float:
        beta1, beta2 = moment.betas
        return (1 - beta1**moment.count) / sqrt(1 - beta2**moment.count)

    def _limit(self, moment: Moment, norm: Tensor) -> Tensor:
        """What the step is multiplied by, so that its norm does not jump."""
        before, now = moment.state["norm"].to(norm.device), norm * self._bias(moment)
        most = torch.where(before > 0, GROWTH * before, now)
        moment.state["norm"] = torch.where(now > 0, torch.minimum(now, most), before)
        return (most / (now + (now == 0))).clamp(max=1)

    def projection(self, name: str, count: int, wide: Tensor) -> Tensor:
        """P of the present draw, rank x rows of `wide`."""
        mark = f"{self.seed}/{name}/{(count - 1) // self.every}".encode()
        generator = torch.Generator(wide.device)
        generator.manual_seed(int.from_bytes(sha256(mark).digest()[:7]))
        shape = (self.rank, len(wide))
        drawn = torch.randn(shape, generator=generator, device=wide.device)
        return drawn / sqrt(self.rank)


def _norm(matrix: Tensor, over: int | None) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=over)


@dataclass(frozen=True)
class Apollo(LowRankMember):
    """Gradients scaled by channel, as a random projection says that Adam would."""

    name: ClassVar[str] = "apollo"
    faster: ClassVar[float] = 4.0
    examples: ClassVar[tuple[str, ...]] = (
        "apollo(rank=4, every=2)",
        "apollo(rank=1) @ (lora(rank=2) @ last(1))",
    )
    rank: int = 32
    every: int = 200
    scale: float = 1.0

    def rule(self, seed: int) -> Rule:
        return ApolloRule(self.rank, self.every, self.scale, seed, whole=False)


@dataclass(frozen=True)
class ApolloMini(LowRankMember):
    """APOLLO of rank 1 with one factor a matrix: the memory of SGD, almost."""

    name: ClassVar[str] = "apollo_mini"
    examples: ClassVar[tuple[str, ...]] = ("apollo_mini(every=2)",)
    every: int = 200
    scale: float = 128.0

    def rule(self, seed: int) -> Rule:
        return ApolloRule(1, self.every, self.scale, seed, whole=True)
