"""LoRA and its variants: W + s B A, where only A and B train; s is alpha/rank.

LoRA: arXiv 2106.09685; PEFT does the work. docs/updates.md has the variants, their sources and
departures. Three are made from the base's weights, by exact decompositions whose factors are
rounded (`rounded`), so that the last bits, which depend on the number of threads, are gone: a
run can be taken up with another number of threads. PEFT's starts take a whole SVD, round B and
A to the base's dtype and cannot be previewed, so only its LoRA layers are used. LoRA-XS is built
into these too, with a module in B's place whose `weight` is U S R."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from modicum.limits import Limits
from modicum.models.linear import adapted_layers, is_matrix, matrix
from modicum.types import UserError
from modicum.updates.adapter import Adapter
from modicum.updates.base import Selection
from modicum.updates.members import Count, Rank
from modicum.updates.products import ADAPTER, Chain, Link, Trains, between
from modicum.updates.schedule import Named, Schedule
from modicum.updates.targets import experts

START = 1e-5  # standard deviation of R of LoRA-XS
TINY = 1e-300  # in place of zero as a divisor
BITS = 14


class LowRank(Adapter):
    """What adapters with a rank and a scale have in common."""

    peft_config = "LoraConfig"
    links = ("lora_A", "lora_B")
    goes_on = True
    passed: ClassVar[dict[str, str]] = {"rank": "r", "alpha": "lora_alpha"}
    rank: Rank = 8
    alpha: Count = 32

    def factors(self, layer: Any) -> tuple[Tensor, Tensor] | None:
        if not is_matrix(layer.base_layer):  # experts
            return None
        return layer.lora_A[ADAPTER].weight, layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight


class Lora(LowRank):
    """A low-rank adapter in every linear layer; `lora(rank=4) @ last(2)` says where.

    `experts=True` also adapts the experts of a mixture that are no linear layers, with A and B
    of their own for every expert."""

    experts: bool = False

    def parameters(self, model: nn.Module, where: Selection | None) -> list[str]:
        found = experts(model, where) if self.experts else []
        if self.experts and not found:
            raise UserError(f"{self}: {where or 'this model'} has no experts in one tensor")
        return found


class RsLora(LowRank):
    """LoRA scaled by alpha/sqrt(rank): the step keeps its size as the rank grows.

    At rank 8 and alpha 12 the scale (4.2) is about that of `lora` (4)."""

    fixed: ClassVar[dict[str, Any]] = {"use_rslora": True}
    alpha: Count = 12


class LoraPlus(LowRank):
    """LoRA whose B learns `ratio` times as fast as A.

    The run's learning rate is that of A."""

    ratio: Annotated[float, Limits(0, 1024, above=True)] = 16.0

    def schedule(self, model: nn.Module, trainable: Named) -> Schedule:
        return Schedule(rates={n: self.ratio for n in trainable if ".lora_B." in n})


class LoraFa(LowRank):
    """LoRA whose A stays as drawn: half the trained numbers, and no wide input is kept."""

    trained = ".lora_B."


class Dora(LowRank):
    """LoRA for the direction of each output row, and its length as a number of its own."""

    reads_base = True
    fixed: ClassVar[dict[str, Any]] = {"use_dora": True}

    def factors(self, layer: Any) -> None:
        """It also scales the rows."""

    def finish(self, model: Any) -> None:
        """Take the norms in fp32: PEFT rounds them to the base's dtype and divides by exact ones."""
        for layer in adapted_layers(model):
            lengths = matrix(layer.base_layer).float().norm(dim=1)
            layer.lora_magnitude_vector["default"].weight.data = lengths


@torch.no_grad()
def triplets(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` greatest singular triplets of a matrix in fp64: U [out, r], S [r], V [in, r]. The
    largest entry of each column of V is positive."""
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


class FromBase(LowRank):
    """What adapters made from the base's weights have in common: they fit into its ranks."""

    goes_on, reads_base = False, True

    def check(self, name: str, layer: Any) -> None:
        rows, columns = matrix(layer).shape
        most = min(rows, columns)
        if self.rank > most:
            raise UserError(f"{self}: {name} is {rows} x {columns}, so rank can be at most {most}")


class Moved(FromBase):
    """An adapter that takes a part of the weights over."""

    rewrites_base = True
    start_tolerance = 1e-5

    @abstractmethod
    def part(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """B [out, r] and A [r, in] in fp64, of which `scale` B A is taken over."""

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


class Pissa(Moved):
    """LoRA that begins as the principal part of the weights, taken out of the base.

    Both factors are large from the start, so a step moves the weights farther than LoRA's."""

    def part(self, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        left, sizes, right = triplets(weight, self.rank)
        roots = (sizes / scale).sqrt()
        return left * roots, (right * roots).mT


class Olora(Moved):
    """LoRA that begins as the first part of the weights' QR factors, taken out of the base.

    alpha is 8, so that at rank 8 the part is taken out once; at alpha/rank 4 it would be
    taken out four times over, and the adapter would have to give all of that back."""

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


class LoraXs(FromBase):
    """Only rank x rank numbers train in a layer, between its own singular vectors."""

    start_tolerance = 5e-3
    trained = ".core"
    rank: Rank = 16
    alpha: Count = 16

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """V^T, the core, U S."""
        core = layer.lora_B[ADAPTER].core
        return between(layer, Link(core.numel(), trains(core)))

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

    def plain(self, model: nn.Module) -> nn.Module:
        for layer in adapted_layers(model):
            weight = layer.lora_B["default"].weight
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=False)
            layer.lora_B["default"] = linear
        return model
