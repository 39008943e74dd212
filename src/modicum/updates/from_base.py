"""Adapters of LoRA's kind that are made from the base's weights: PiSSA, OLoRA and LoRA-XS.

*PiSSA and OLoRA*: W becomes W - s B A with B A from W itself, so the model at the start is the
base to rounding, but its frozen weights are not the base's: the reference is the adapter's
first values (`adapter.Adapter.rewrites_base`). s is alpha/rank.

- PiSSA (arXiv 2404.02948): s B A is the principal part of W; of W = U S V^T, B = U sqrt(S/s)
  and A = sqrt(S/s) V^T, the greatest `rank` singular values alone.
- OLoRA (arXiv 2406.01775): of W = Q R, B is the first `rank` columns of Q and A the first
  rows of R.

PEFT has both. Here only its LoRA layers are used, as its start takes a whole SVD, rounds B and A
to the base's dtype and cannot be previewed. Departures: the singular vectors are the eigenvectors
of the smaller Gram matrix in fp64. B and A are rounded (`rounded`) before B A is taken out of W:
so the last bits of the decomposition, which depend on the number of threads, are gone, B A is
exact, and a run can be taken up with another number of threads.

*LoRA-XS* (arXiv 2405.17604): W + s U S R V^T, where only R (rank x rank) trains, from
N(0, 1e-5^2). U, S, V are the principal singular triplets of W. PEFT has none: it is built into
PEFT's LoRA layers, with A = V^T and a module in B's place whose `weight` is U S R, so that what
works on LoRA works on it; it is exported as ordinary LoRA. Departures: the triplets are exact
(`triplets`), where the paper's code iterates a truncated SVD; U S and V are rounded likewise.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modicum.models.linear import adapted_layers, matrix
from modicum.types import UserError
from modicum.updates.lora import LowRank
from modicum.updates.members import Count, Rank
from modicum.updates.products import ADAPTER, Chain, Link, Trains

START = 1e-5  # standard deviation of R of LoRA-XS
TINY = 1e-300  # in place of zero as a divisor
BITS = 14


@torch.no_grad()
def triplets(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` greatest singular triplets of a matrix in fp64: U [out, r], S [r], V [in, r].

    The largest entry of each column of V is positive.
    """
    wide = weight.double()
    tall = wide.shape[0] >= wide.shape[1]
    gram = wide.mT @ wide if tall else wide @ wide.mT
    basis = torch.linalg.eigh(gram)[1][:, -rank:].flip(1)
    other = (wide if tall else wide.mT) @ basis
    sizes = other.norm(dim=0)
    other = other / sizes.clamp_min(TINY)
    left, right = (other, basis) if tall else (basis, other)
    signs = right.gather(0, right.abs().argmax(0, keepdim=True)).sign()
    return left * signs, sizes, right * signs


def rounded(tensor: Tensor, dim: int) -> Tensor:
    """The tensor in fp32, rounded to 2^-BITS of about the largest number along `dim`."""
    largest = tensor.abs().amax(dim, keepdim=True)
    step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest)[1] - BITS)
    return ((tensor / step).round() * step).float()


@dataclass(frozen=True)
class FromBase(LowRank):
    """What adapters made from the base's weights have in common: they fit into its ranks."""

    goes_on = False

    def check(self, name: str, layer: Any) -> None:
        rows, columns = matrix(layer).shape
        most = min(rows, columns)
        if self.rank > most:
            raise UserError(f"{self}: {name} is {rows} x {columns}, so rank can be at most {most}")


@dataclass(frozen=True)
class Moved(FromBase):
    """An adapter that takes a part of the weights over."""

    rewrites_base = True
    start_tolerance = 1e-5

    @abstractmethod
    def part(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """B [out, r] and A [r, in] in fp64, of which `scale` B A is taken over."""

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        """Set B and A and take them out of the base; nothing on the meta device."""
        for layer in adapted_layers(model):
            weight, scale = matrix(layer.base_layer), layer.scaling["default"]
            if weight.device.type == "meta":
                continue
            up, down = self.part(weight, scale)
            up, down = rounded(up, 0), rounded(down, 1)
            layer.lora_B["default"].weight.copy_(up)
            layer.lora_A["default"].weight.copy_(down)
            weight.copy_(weight.double() - scale * (up.double() @ down.double()))


@dataclass(frozen=True)
class Pissa(Moved):
    """LoRA that begins as the principal part of the weights, taken out of the base.

    Both factors are large from the start, so a step moves the weights farther than LoRA's:
    on the tiny base the best rate was a fifth of LoRA's (one seed).
    """

    examples = ("pissa(rank=2)", "pissa(rank=2) @ last(1)")

    def part(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        left, sizes, right = triplets(weight, self.rank)
        roots = (sizes / scale).sqrt()
        return left * roots, (right * roots).mT


@dataclass(frozen=True)
class Olora(Moved):
    """LoRA that begins as the first part of the weights' QR factors, taken out of the base.

    On the tiny base the best rate was half of LoRA's (one seed).
    alpha is 8, so that at rank 8 the part is taken out once; at alpha/rank 4 it would be
    taken out four times over, and the adapter would have to give all of that back.
    """

    examples = (
        "olora(rank=2, alpha=2)",
        "olora(rank=2, alpha=2) @ last(1)",
    )
    alpha: Count = 8

    def part(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        wide = weight.double()
        # The first columns of Q need the first columns of W alone.
        up = torch.linalg.qr(wide[:, : self.rank])[0]
        return up, up.mT @ wide


class Core(nn.Module):
    """In the place of LoRA's B [out, rank]: a frozen factor times the core that trains."""

    def __init__(self, left: Tensor, core: Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(left, requires_grad=False)
        self.core = nn.Parameter(core)

    @property
    def weight(self) -> Tensor:
        """What LoRA's B would hold."""
        return self.left @ self.core

    def forward(self, x: Tensor) -> Tensor:
        """B x, by way of the core; x is [..., rank]."""
        return x @ self.core.mT @ self.left.mT


@dataclass(frozen=True)
class LoraXs(FromBase):
    """Only rank x rank numbers train in a layer, between its own singular vectors."""

    start_tolerance = 5e-3
    examples = ("loraxs(rank=4)", "loraxs(rank=4) @ last(1)")
    rank: Rank = 16
    alpha: Count = 16

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """V^T, the core, U S."""
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER]
        core = Link(up.core.numel(), trains(up.core))
        return Chain((Link(down.numel(), False), core, Link(up.left.numel(), False)))

    def trains(self, name: str) -> bool:
        return name.endswith(".core")

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        """Set A to V^T and put the core in B's place; shapes alone on the meta device."""
        for layer in adapted_layers(model):
            weight, down, up = matrix(layer.base_layer), layer.lora_A, layer.lora_B
            left = torch.empty_like(up["default"].weight)
            if weight.device.type != "meta":
                found, sizes, right = triplets(weight, self.rank)
                left = rounded(found * sizes, 0)
                down["default"].weight.copy_(rounded(right, 0).mT)
            # Drawn on the CPU, so that the seed gives the same on every device.
            core = torch.randn(self.rank, self.rank) * START
            up["default"] = Core(left, core.to(weight.device))

    @torch.no_grad()
    def plain(self, model: nn.Module) -> nn.Module:
        for layer in adapted_layers(model):
            weight = layer.lora_B["default"].weight
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=False)
            layer.lora_B["default"] = linear
        return model
