"""Muon: every direction of a matrix's step has the same size.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), as torch.optim.Muon has it:

    b = m b + (1 - m) g          u = m b + (1 - m) g                 (Nesterov)
    X = u / |u|, five times      X = a X + (b2 + c X X^T) X X^T X    (Newton and Schulz)
    W -= rate * 0.2 sqrt(max(rows, columns)) * X                     (arXiv 2502.16982)
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from modicum.limits import ShareBelowOne
from modicum.updates.base import Prepared
from modicum.updates.optimizers import MatrixMember, Moment, Scale, State

A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5
LEAST = 1e-7  # as a divisor
MATCH = 0.2  # of AdamW's steps, as a root of the mean square
POCKET = (
    "muon makes all directions of a step equally large, those of noise too; it fails in RL with"
    " verifiable rewards in arXiv 2605.19282, but for a small range of rates: let the rate be found,"
    " and compare with AdamW"
)
FLAT = "on an adapter's factors muon makes its few directions equally large, which is legal and odd"


@dataclass(frozen=True)
class Muon(MatrixMember):
    """Orthogonal steps of the layers' matrices; all else by AdamW, at `others` times the rate."""

    examples = (
        "muon",
        "muon(momentum=0.8, others=0.5) @ last(2)",
        "muon @ (lora(rank=2) @ last(1))",
    )
    rank: ClassVar[int] = 1  # type: ignore[misc]
    needs_signal = True
    momentum: ShareBelowOne = 0.95
    others: Scale = 1.0  # type: ignore[misc]

    def kept(self, rows: int, columns: int) -> int:
        return rows * columns

    def start(self, matrix: Tensor) -> State:
        return {"momentum_buffer": torch.zeros_like(matrix)}

    def direction(self, moment: Moment) -> Tensor:
        gradient, buffer = moment.gradient, moment.state["momentum_buffer"]
        if not gradient.any():
            return gradient
        buffer.lerp_(gradient, 1 - self.momentum)
        toward = orthogonal(gradient.lerp(buffer, self.momentum))
        return toward * (MATCH * sqrt(max(gradient.shape)))

    def check(self, prepared: Prepared) -> None:
        super().check(prepared)
        prepared.told += [POCKET, FLAT] if prepared.adapter else [POCKET]


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with its singular values near 1, and its singular vectors; 0 stays 0."""
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    wide = wide / wide.norm().clamp(min=LEAST)
    found = flattened(wide if matrix.device.type == "cpu" else wide.bfloat16())
    return (found.T if tall else found).to(matrix.dtype)


def flattened(wide: Tensor) -> Tensor:
    """Five steps of Newton and Schulz, on singular values of at most 1."""
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=B, alpha=C), wide, beta=A)
    return wide
