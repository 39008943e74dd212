"""GaLore (Zhao et al. 2024, arXiv 2403.03507): Adam in a low-rank space of the gradient.

For a matrix of m rows and n columns with gradient G:

    m >= n:  R = G V_r,     W -= rate * scale * Adam(R) V_r^T
    m <  n:  R = U_r^T G,   W -= rate * scale * U_r Adam(R)

U S V^T is the singular value decomposition of G, taken anew every `every` steps of the
tensor. The moments are not turned when the basis is, as in the reference code. Kept are
basis and moments: r min(m, n) + 2 r max(m, n) numbers in place of 2 m n. The weights move
in all directions in the course of time, as bases change.

Departures: a zero gradient never makes a basis (the next one does); the sign of a basis
vector is fixed (its largest entry is positive), so that moments mean the same from basis
to basis; epsilon is added after the bias correction, as torch does it. Embedding and head
get plain AdamW.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from modicum.updates import lowrank
from modicum.updates.lowrank import LowRankMember, LowRankRule, Moment, State
from modicum.updates.rules import Rule


@dataclass(frozen=True)
class GaLoreRule(LowRankRule):
    """Adam on the gradient's part in a basis of its own."""

    def kept(self, rows: int, columns: int) -> int:
        return self.rank * (min(rows, columns) + 2 * max(rows, columns))

    def start(self, matrix: Tensor) -> State:
        rows, columns = matrix.shape
        low = (rows, self.rank) if rows >= columns else (self.rank, columns)
        basis = torch.zeros(min(rows, columns), self.rank, device=matrix.device)
        # Due at once.
        made = torch.tensor(float(-self.every))
        return {"basis": basis, "basis_made": made} | lowrank.moments(low, matrix.device)

    def direction(self, moment: Moment) -> Tensor:
        gradient, state = moment.gradient, moment.state
        before = moment.count - 1
        if before - int(state["basis_made"]) >= self.every and bool(gradient.any()):
            state["basis"] = basis_of(gradient, self.rank)
            state["basis_made"] = torch.tensor(float(before))
        basis, (rows, columns) = state["basis"], gradient.shape
        low = gradient @ basis if rows >= columns else basis.T @ gradient
        return self._back(moment, lowrank.normalised(moment, low))

    def taken(self, moment: Moment) -> Tensor:
        return self._back(moment, lowrank.adam(moment))

    def _back(self, moment: Moment, low: Tensor) -> Tensor:
        """From the low-rank space into that of the matrix."""
        basis, (rows, columns) = moment.state["basis"], moment.gradient.shape
        return (low @ basis.T if rows >= columns else basis @ low) * self.scale


def basis_of(gradient: Tensor, rank: int) -> Tensor:
    """The first singular vectors of the smaller side, as columns; the largest entry is positive."""
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    rows, columns = gradient.shape
    found = right[:rank].T if rows >= columns else left[:, :rank]
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return (found * largest.sign()).contiguous()


@dataclass(frozen=True)
class GaLore(LowRankMember):
    """Adam in a low-rank space of each gradient: small state, all weights train."""

    name: ClassVar[str] = "galore"
    faster: ClassVar[float] = 4.0
    examples: ClassVar[tuple[str, ...]] = (
        "galore(rank=4, every=2)",
        "galore(rank=1) @ (lora(rank=2) @ last(1))",
    )
    rank: int = 8
    every: int = 200
    scale: float = 0.25

    def rule(self, seed: int) -> Rule:
        return GaLoreRule(self.rank, self.every, self.scale)
