"""Optimizers that treat matrices in a way of their own: GaLore, APOLLO and Muon.

Of the layers' matrices those with more than `rank` rows and columns; all else has torch's AdamW.

*GaLore* (arXiv 2403.03507), for a matrix of m rows and n columns with gradient G = U S V^T:

    m >= n:  R = G V_r,     W -= rate * scale * Adam(R) V_r^T
    m <  n:  R = U_r^T G,   W -= rate * scale * U_r Adam(R)

*APOLLO* (arXiv 2412.05270), with a random P of r rows from N(0, 1/r), R = P G (or G P^T):

    s_j = |Adam(R)_j| / |R_j|          W -= rate * sqrt(scale) * s_j G_j

The norm of s G may grow by 1 % a step at most (arXiv 2410.01623); the limit is on norms before
bias correction, as in the reference code. docs/updates.md has the departures.

*Muon* (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), as torch.optim.Muon has it:

    b = m b + (1 - m) g          u = m b + (1 - m) g                 (Nesterov)
    X = u / |u|, five times      X = a X + (b2 + c X X^T) X X^T X    (Newton and Schulz)
    W -= rate * 0.2 sqrt(max(rows, columns)) * X                     (arXiv 2502.16982)"""

from abc import abstractmethod
from collections.abc import Callable
from hashlib import sha256
from math import sqrt
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from modicum.config import Optimizer
from modicum.limits import Limits, ShareBelowOne
from modicum.models.device import up
from modicum.report.words import say
from modicum.types import UserError
from modicum.updates.base import Prepared
from modicum.updates.layout import layer_of
from modicum.updates.members import Groups, Steps
from modicum.updates.optimizers import OptimizerMember

Values = dict[str, Any]
Rank = Annotated[int, Limits(1, 4096)]
Scale = Annotated[float, Limits(0, 1e6, above=True)]
GROWTH, TINY = 1.01, 1e-8
A, B, C, STEPS = 3.4445, -4.7750, 2.0315, 5
LEAST = 1e-7  # as a divisor
MATCH = 0.2  # of AdamW's steps, as a root of the mean square


@torch.no_grad()
def adam(gradient: Tensor, state: Values, group: Values) -> Tensor:
    """Adam's m / (sqrt(v) + eps), both with bias correction, after taking `gradient` in."""
    beta1, beta2 = group["betas"]
    count, first, second = int(state["step"]), state["exp_avg"], state["exp_avg_sq"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
    return (first / (1 - beta1**count)).div_(root)


def moments(shape: torch.Size | tuple[int, int], device: torch.device) -> Values:
    return {key: torch.zeros(shape, device=device) for key in ("exp_avg", "exp_avg_sq")}


class MatrixMember(OptimizerMember):
    """AdamW but for matrices; members say with what those begin and which way it leads."""

    by_entry, on_host = False, ("step", "basis_made")
    step_tables = 4  # the projection of a gradient, and its way back
    rank: int  # a matrix with no more rows or columns gets AdamW
    others = 1.0  # the rate of what gets AdamW, over that of the matrices

    @abstractmethod
    def start(self, matrix: Tensor) -> Values:
        """The state of a matrix before its first step."""

    @abstractmethod
    def direction(self, name: str, gradient: Tensor, state: Values, group: Values) -> Tensor:
        """What is taken off the matrix, over the learning rate; updates the state.

        `step` of the state counts the steps of this matrix, this one included."""

    def treats(self, name: str, shape: torch.Size) -> bool:
        """Whether a tensor is a matrix of a layer, and large enough."""
        return len(shape) == 2 and min(shape) > self.rank and layer_of(name) is not None

    def make(self, groups: Groups, settings: Optimizer) -> torch.optim.Optimizer:
        return MatrixAdamW(groups, settings, self)

    def first(self, name: str, tensor: Tensor) -> Values:
        """The state of a tensor before its first step."""
        treated = self.treats(name, tensor.shape)
        return self.start(tensor) if treated else moments(tensor.shape, tensor.device)

    def state_bytes(self, name: str, shape: torch.Size) -> int:
        state = self.first(name, torch.empty(shape, device="meta"))
        return sum(held.nbytes for held in state.values() if held.dim())

    def check(self, prepared: Prepared) -> None:
        size, named = prepared.schedule.size, prepared.trainable.items()
        if not any(self.treats(n, p.shape) and size(n, p) == p.numel() for n, p in named):
            smaller = "take a smaller rank or " * (self.rank > 1)
            raise UserError.of("no_matrix", update=self, rank=self.rank, smaller=smaller)


class MatrixAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) in which a member treats the matrices of the layers."""

    def __init__(self, groups: Groups, settings: Optimizer, member: MatrixMember) -> None:
        betas, decay = (settings.beta1, settings.beta2), settings.weight_decay
        given = {"lr": 0.0, "betas": betas, "eps": settings.epsilon, "weight_decay": decay}
        super().__init__(groups, given)
        self.member = member

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every tensor that has a gradient; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for name, tensor in zip(group["names"], group["params"], strict=True):
                if tensor.grad is not None:
                    self._move(name, tensor, tensor.grad, group)

    def _move(self, name: str, tensor: Tensor, gradient: Tensor, group: Values) -> None:
        state, treated = self.state[tensor], self.member.treats(name, tensor.shape)
        if not state:
            state |= {"step": torch.zeros(()), **self.member.first(name, tensor)}
        state["step"] = state["step"].cpu() + 1
        given = gradient, state, group
        toward = self.member.direction(name, *given) if treated else adam(*given)
        rate = group["lr"] * (1.0 if treated else self.member.others)
        tensor.mul_(1 - rate * group["weight_decay"])
        tensor.add_(toward, alpha=-rate)


class GaLore(MatrixMember):
    """Adam in a low-rank space of each gradient: small state, all weights train."""

    faster = 4.0
    rank: Rank = 8
    every: Steps = 200
    scale: Scale = 0.25

    def start(self, matrix: Tensor) -> Values:
        rows, columns = matrix.shape
        low = (rows, self.rank) if rows >= columns else (self.rank, columns)
        basis = torch.zeros(min(rows, columns), self.rank, device=matrix.device)
        made = torch.tensor(float(-self.every))  # due at once
        return {"basis": basis, "basis_made": made} | moments(low, matrix.device)

    def direction(self, name: str, gradient: Tensor, state: Values, group: Values) -> Tensor:
        before, (rows, columns) = int(state["step"]) - 1, gradient.shape
        if before - int(state["basis_made"]) >= self.every and bool(gradient.any()):
            state["basis"] = basis_of(gradient, self.rank)
            state["basis_made"] = torch.tensor(float(before))
        basis = state["basis"]
        if rows >= columns:
            return adam(gradient @ basis, state, group) @ basis.T * self.scale
        return basis @ adam(basis.T @ gradient, state, group) * self.scale


def basis_of(gradient: Tensor, rank: int) -> Tensor:
    """The first singular vectors of the smaller side, as columns; the largest entry is positive."""
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    rows, columns = gradient.shape
    found = right[:rank].T if rows >= columns else left[:, :rank]
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return (found * largest.sign()).contiguous()


class Apollo(MatrixMember):
    """Gradients scaled by channel, as a random projection says that Adam would."""

    faster = 4.0
    over: ClassVar[int | None] = 0  # what has one factor: a channel, or (None) the whole matrix
    rank: Rank = 32
    every: Steps = 200
    scale: Scale = 1.0

    def start(self, matrix: Tensor) -> Values:
        low = (self.rank, max(matrix.shape))
        return {"norm": torch.zeros((), device=matrix.device)} | moments(low, matrix.device)

    def direction(self, name: str, gradient: Tensor, state: Values, group: Values) -> Tensor:
        (rows, columns), count = gradient.shape, int(state["step"])
        wide = gradient if rows < columns else gradient.T
        low = self.projection(name, count, wide) @ wide
        size = torch.linalg.vector_norm
        grown = size(adam(low, state, group), dim=self.over)
        scaled = wide * (grown / (size(low, dim=self.over) + TINY))
        # The norm of the step does not jump.
        norm, (beta1, beta2) = size(scaled), group["betas"]
        now = norm * ((1 - beta1**count) / sqrt(1 - beta2**count))
        before = state["norm"].to(norm.device)
        most = torch.where(before > 0, GROWTH * before, now)
        state["norm"] = torch.where(now > 0, torch.minimum(now, most), before)
        limit = (most / (now + (now == 0))).clamp(max=1)
        scaled = scaled * limit * sqrt(self.scale)
        return scaled if wide is gradient else scaled.T

    def projection(self, name: str, count: int, wide: Tensor) -> Tensor:
        """P of the draw for the step `count` of a tensor, rank x rows of `wide`."""
        mark = f"{self.seed}/{name}/{(count - 1) // self.every}".encode()
        generator = torch.Generator()  # of the CPU, so that a run may move
        generator.manual_seed(int.from_bytes(sha256(mark).digest()[:7]))
        drawn = torch.randn(self.rank, len(wide), generator=generator)
        return up(wide.device, drawn / sqrt(self.rank))[0]


class ApolloMini(Apollo):
    """APOLLO of rank 1 with one factor a matrix: the memory of SGD, almost."""

    name = "apollo_mini"
    faster = 1.0
    over = None
    rank: ClassVar[int] = 1  # type: ignore[misc]
    scale: Scale = 128.0


class Muon(MatrixMember):
    """Orthogonal steps of the layers' matrices; all else by AdamW, at `others` times the rate."""

    rank: ClassVar[int] = 1  # type: ignore[misc]
    needs_signal = True
    momentum: ShareBelowOne = 0.95
    others: Scale = 1.0  # type: ignore[misc]

    def start(self, matrix: Tensor) -> Values:
        return {"momentum_buffer": torch.zeros_like(matrix)}

    def direction(self, name: str, gradient: Tensor, state: Values, group: Values) -> Tensor:
        if not gradient.any():
            return gradient
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - self.momentum)
        toward = orthogonal(gradient.lerp(buffer, self.momentum))
        return toward * (MATCH * sqrt(max(gradient.shape)))

    def check(self, prepared: Prepared) -> None:
        super().check(prepared)
        prepared.told += map(say, ["muon", "muon_factors"] if prepared.adapter else ["muon"])


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
