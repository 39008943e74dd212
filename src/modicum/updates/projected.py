"""Adam with less state for the matrices of the layers: GaLore and APOLLO.

*GaLore* (arXiv 2403.03507), for a matrix of m rows and n columns with gradient G = U S V^T:

    m >= n:  R = G V_r,     W -= rate * scale * Adam(R) V_r^T
    m <  n:  R = U_r^T G,   W -= rate * scale * U_r Adam(R)

*APOLLO* (arXiv 2412.05270), with a random P of r rows from N(0, 1/r), R = P G (or G P^T):

    s_j = |Adam(R)_j| / |R_j|          W -= rate * sqrt(scale) * s_j G_j

The norm of s G may grow by 1 % a step at most (arXiv 2410.01623); the limit is on norms before
bias correction, as in the reference code. docs/updates.md has the departures.
"""

from dataclasses import dataclass
from hashlib import sha256
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from modicum.updates.members import Steps
from modicum.updates.optimizers import MatrixMember, Moment, Rank, Scale, State, adam, moments

GROWTH = 1.01
TINY = 1e-8


@dataclass(frozen=True)
class GaLore(MatrixMember):
    """Adam in a low-rank space of each gradient: small state, all weights train."""

    faster = 4.0
    examples = ("galore(rank=4, every=2)", "galore(rank=1) @ (lora(rank=2) @ last(1))")
    rank: Rank = 8
    every: Steps = 200
    scale: Scale = 0.25

    def kept(self, rows: int, columns: int) -> int:
        return self.rank * (min(rows, columns) + 2 * max(rows, columns))

    def start(self, matrix: Tensor) -> State:
        rows, columns = matrix.shape
        low = (rows, self.rank) if rows >= columns else (self.rank, columns)
        basis = torch.zeros(min(rows, columns), self.rank, device=matrix.device)
        # Due at once.
        made = torch.tensor(float(-self.every))
        return {"basis": basis, "basis_made": made} | moments(low, matrix.device)

    def direction(self, moment: Moment) -> Tensor:
        gradient, state = moment.gradient, moment.state
        before = moment.count - 1
        if before - int(state["basis_made"]) >= self.every and bool(gradient.any()):
            state["basis"] = basis_of(gradient, self.rank)
            state["basis_made"] = torch.tensor(float(before))
        basis, (rows, columns) = state["basis"], gradient.shape
        if rows >= columns:
            return adam(moment, gradient @ basis) @ basis.T * self.scale
        return basis @ adam(moment, basis.T @ gradient) * self.scale


def basis_of(gradient: Tensor, rank: int) -> Tensor:
    """The first singular vectors of the smaller side, as columns; the largest entry is positive."""
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    rows, columns = gradient.shape
    found = right[:rank].T if rows >= columns else left[:, :rank]
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return (found * largest.sign()).contiguous()


@dataclass(frozen=True)
class Apollo(MatrixMember):
    """Gradients scaled by channel, as a random projection says that Adam would."""

    faster = 4.0
    examples = ("apollo(rank=4, every=2)", "apollo(rank=1) @ (lora(rank=2) @ last(1))")
    over: ClassVar[int | None] = 0  # what has one factor: a channel, or (None) the whole matrix
    rank: Rank = 32
    every: Steps = 200
    scale: Scale = 1.0

    def kept(self, rows: int, columns: int) -> int:
        return 2 * self.rank * max(rows, columns)

    def start(self, matrix: Tensor) -> State:
        low = (self.rank, max(matrix.shape))
        return {"norm": torch.zeros((), device=matrix.device)} | moments(low, matrix.device)

    def direction(self, moment: Moment) -> Tensor:
        gradient, (rows, columns) = moment.gradient, moment.gradient.shape
        wide = gradient if rows < columns else gradient.T
        low = self.projection(moment, wide) @ wide
        scaled = wide * (_norm(adam(moment, low), self.over) / (_norm(low, self.over) + TINY))
        # The norm of the step does not jump.
        norm, (beta1, beta2) = _norm(scaled, None), moment.betas
        now = norm * ((1 - beta1**moment.count) / sqrt(1 - beta2**moment.count))
        before = moment.state["norm"].to(norm.device)
        most = torch.where(before > 0, GROWTH * before, now)
        moment.state["norm"] = torch.where(now > 0, torch.minimum(now, most), before)
        limit = (most / (now + (now == 0))).clamp(max=1)
        scaled = scaled * limit * sqrt(self.scale)
        return scaled if wide is gradient else scaled.T

    def projection(self, moment: Moment, wide: Tensor) -> Tensor:
        """P of the present draw, rank x rows of `wide`."""
        mark = f"{moment.seed}/{moment.name}/{(moment.count - 1) // self.every}".encode()
        generator = torch.Generator(wide.device)
        generator.manual_seed(int.from_bytes(sha256(mark).digest()[:7]))
        shape = (self.rank, len(wide))
        drawn = torch.randn(shape, generator=generator, device=wide.device)
        return drawn / sqrt(self.rank)


def _norm(matrix: Tensor, over: int | None) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=over)


@dataclass(frozen=True)
class ApolloMini(Apollo):
    """APOLLO of rank 1 with one factor a matrix: the memory of SGD, almost."""

    name = "apollo_mini"
    faster = 1.0
    examples = ("apollo_mini(every=2)",)
    over = None
    rank: ClassVar[int] = 1  # type: ignore[misc]
    scale: Scale = 128.0
