"""Adapters made of blocks: MiSS and OFT. PEFT does the work.

*MiSS* (Kang and Yin 2024, arXiv 2409.15371, first named Bone): the change of a weight is
one matrix D of rank x out numbers, zero at first, repeated along the input. So the input's
blocks of length `rank` are summed, and D is applied to the sum. A rank that does not divide
the input's size is padded with zeros. Departure from PEFT's defaults: all linear layers.

*OFT* (Qiu et al. 2023, arXiv 2306.07280): the input is rotated, block by block, before the
base layer; a rotation of size b has b (b - 1) / 2 trained numbers, the upper triangle of a
skew matrix Q, zero at first. By default the rotation is PEFT's series for (I + Q)(I - Q)^-1,
I + 2Q + 2Q^2 + 2Q^3 + Q^4, which is orthogonal but for terms of size |Q|^4; `exact=True`
solves for (I - Q)(I + Q)^-1 (slow while sampling). Norms of rows are kept. No constraint on
|Q| (COFT), no dropout of blocks.

Rates. An entry of D is that change in many weights, an angle turns whole blocks of them,
so both take smaller steps than LoRA's factors: 1 (MiSS) and 2 (OFT) times the rate of full
training make five steps on one batch of the tiny base move the policy (by KL) as far as
tuned rates of `full` and `lora` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar

from torch import nn

from modicum.spec import within
from modicum.types import UserError
from modicum.updates.adapter import MAX_COUNT, Adapter, at_least_one
from modicum.updates.base import Selection
from modicum.updates.chains import ADAPTER, Chain, Link, Trains


@dataclass(frozen=True)
class Miss(Adapter):
    """One small matrix a layer, shared by the blocks of its input."""

    name: ClassVar[str] = "miss"
    peft_config: ClassVar[str] = "MissConfig"
    turned: ClassVar[bool] = False
    rate_scale: ClassVar[float] = 1.0
    examples: ClassVar[tuple[str, ...]] = ("miss(rank=4)", "miss(rank=5) @ last(1)")
    rank: int = 64

    def __post_init__(self) -> None:
        at_least_one(self, rank=self.rank)

    def check(self, name: str, layer: Any) -> None:
        """No input may be smaller than the rank."""
        size = layer.in_features
        if size < self.rank:
            raise UserError(f"{self}: the input of {name} has {size} numbers; rank is at most that")

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """MiSS of the plain kind."""
        return {"r": self.rank}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """D."""
        block = layer.miss_block[ADAPTER]
        return Chain((Link(block.numel(), trains(block)),))


@dataclass(frozen=True)
class Oft(Adapter):
    """The input of every linear layer is rotated, block by block."""

    name: ClassVar[str] = "oft"
    peft_config: ClassVar[str] = "OFTConfig"
    turned: ClassVar[bool] = False
    rate_scale: ClassVar[float] = 2.0
    examples: ClassVar[tuple[str, ...]] = (
        "oft(block_size=8)",
        "oft(block_size=4, exact=True) @ last(1)",
    )
    block_size: int = 32
    exact: bool = False

    def __post_init__(self) -> None:
        within("oft: block_size", self.block_size, 2, MAX_COUNT)

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        """The selected linear layers; blocks must divide the input of each."""
        found = super().targets(model, where)
        sizes: dict[str, Any] = {name: model.get_submodule(name).in_features for name in found}
        for name, size in sizes.items():
            if size % self.block_size:
                raise UserError(
                    f"{self}: the input of {name} has {size} numbers, which blocks of"
                    f" {self.block_size} do not divide; divisors of {gcd(*sizes.values())} fit"
                    " every layer here"
                )
        return found

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """The series for the rotation, or the exact one."""
        return {"oft_block_size": self.block_size, "use_cayley_neumann": not self.exact}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A rotation of the input, block by block."""
        rotation = layer.oft_R[ADAPTER]
        link = Link(layer.in_features * rotation.block_size, trains(rotation))
        return Chain((link,), inside=True)
