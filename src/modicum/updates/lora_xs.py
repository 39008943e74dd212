"""LoRA-XS (arXiv 2405.17604): W + s U S R V^T, where only R (rank x rank) trains.

U, S, V are the principal singular triplets of W and stay as they are; R is drawn from
N(0, 1e-5^2), so the start is the base to about 1e-5 of the weights. s is alpha/rank.
PEFT has no LoRA-XS: it is built into PEFT's LoRA layers, with A = V^T and a module in B's
place whose `weight` is U S R, so that what works on LoRA (merging, the faster forward)
works on it; for export it is turned into ordinary LoRA.

Departures: the triplets are exact (`pissa.triplets`), where the paper's code iterates a
truncated SVD; then U S and V are rounded to 14 bits, for the
reason given in `pissa.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modicum.models.linear import matrix
from modicum.updates.chains import ADAPTER, Chain, Link, Trains
from modicum.updates.lora import lora_layers
from modicum.updates.pissa import FromBase, rounded, triplets

START = 1e-5  # standard deviation of R


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

    name: ClassVar[str] = "loraxs"
    start_tolerance: ClassVar[float] = 5e-3
    examples: ClassVar[tuple[str, ...]] = ("loraxs(rank=4)", "loraxs(rank=4) @ last(1)")
    rank: int = 16
    alpha: int = 16

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
        for layer in lora_layers(model).values():
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
        """The model with ordinary LoRA layers of the same values."""
        for layer in lora_layers(model).values():
            weight = layer.lora_B["default"].weight
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=False)
            layer.lora_B["default"] = linear
        return model
