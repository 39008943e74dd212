"""Adapters made of blocks, MiSS and OFT, and of single entries, SHiRA. PEFT does the work.

*MiSS* (Kang and Yin 2024, arXiv 2409.15371, first named Bone): the change of a weight is
one matrix D of rank x out numbers, zero at first, repeated along the input. A rank that does
not divide the input's size is padded with zeros.

*OFT* (Qiu et al. 2023, arXiv 2306.07280): the input is rotated, block by block, before the
base layer; a rotation of size b has b (b - 1) / 2 trained numbers, the upper triangle of a
skew matrix Q, zero at first. By default the rotation is PEFT's series for (I + Q)(I - Q)^-1,
I + 2Q + 2Q^2 + 2Q^3 + Q^4, which is orthogonal but for terms of size |Q|^4; `exact=True`
solves for (I - Q)(I + Q)^-1. No constraint on |Q| (COFT), no dropout of blocks.

*SHiRA* (Bhardwaj et al. 2024, arXiv 2406.13175): rank x (in + out) random entries of every
weight train, drawn from the run's seed for every layer anew; PEFT would draw the same for all
layers of one shape. Every forward copies the whole weight to add the entries, and backward
makes its whole gradient. With a bf16 base the sum is rounded to bf16.

Departure from PEFT's defaults: all linear layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from modicum.types import UserError
from modicum.updates.adapter import Adapter
from modicum.updates.base import Selection
from modicum.updates.members import MAX_COUNT, Count, Limits
from modicum.updates.products import ADAPTER, Chain, Link, Trains


@dataclass(frozen=True)
class Miss(Adapter):
    """One small matrix a layer, shared by the blocks of its input."""

    peft_config = "MissConfig"
    links = ("miss_block",)
    turned = False
    examples = ("miss(rank=4)", "miss(rank=5) @ last(1)")
    passed: ClassVar[dict[str, str]] = {"rank": "r"}
    rank: Count = 64

    def check(self, name: str, layer: Any) -> None:
        size = layer.in_features
        if size < self.rank:
            raise UserError(f"{self}: the input of {name} has {size} numbers; rank is at most that")


@dataclass(frozen=True)
class Oft(Adapter):
    """The input of every linear layer is rotated, block by block."""

    peft_config = "OFTConfig"
    turned = False
    examples = (
        "oft(block_size=8)",
        "oft(block_size=4, exact=True) @ last(1)",
    )
    passed: ClassVar[dict[str, str]] = {"block_size": "oft_block_size"}
    block_size: Annotated[int, Limits(2, MAX_COUNT)] = 32
    exact: bool = False

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
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
        return super().settings(targets, seed) | {"use_cayley_neumann": not self.exact}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A rotation of the input, block by block."""
        rotation = layer.oft_R[ADAPTER]
        link = Link(layer.in_features * rotation.block_size, trains(rotation))
        return Chain((link,), inside=True)


@dataclass(frozen=True)
class Shira(Adapter):
    """Entries drawn at random train, in every linear layer as many as a LoRA would have."""

    peft_config = "ShiraConfig"
    turned = False
    examples = ("shira(rank=2)", "shira(rank=1) @ last(2)")
    passed: ClassVar[dict[str, str]] = {"rank": "r"}
    rank: Count = 8

    def check(self, name: str, layer: Any) -> None:
        out, size = layer.weight.shape
        if self.rank * (out + size) > out * size:
            raise UserError(
                f"{self}: {name} has {out * size} entries, fewer than rank x ({out} + {size});"
                f" rank is at most {out * size // (out + size)} there"
            )

    def config(self, targets: list[str], seed: int) -> Any:
        config = super().config(targets, seed)
        config.mask_fn = drawn(seed)
        return config

    def finish(self, model: Any) -> None:
        """Make the indices buffers too, which the change proof watches."""
        # As they are; said out loud, as torch warns of the silent default.
        torch.sparse.check_sparse_tensor_invariants.disable()
        for layer in model.modules():
            for indices in getattr(layer, "shira_indices", {}).values():
                layer.register_buffer("trained_entries", indices, persistent=False)

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """No matrix of its own, but the gradient of the whole weight."""
        return Chain((Link(0, trains(layer.shira_weight[ADAPTER])),), whole=True)

    def without_data(self, model: nn.Module) -> None:
        """Let layers add a table without memory, as sparse tensors need data.

        Where the entries lie (16 bytes a number) is left out.
        """
        for layer in model.modules():
            if hasattr(layer, "shira_weight"):
                layer.get_delta_weight = partial(_expanded, layer)  # type: ignore[assignment]


def _expanded(layer: Any, adapter: str) -> Tensor:
    """A table of the weight's shape through which the adapter's numbers get a gradient."""
    total = (layer.shira_weight[adapter] * layer.scaling[adapter]).sum()
    return total.expand(layer.out_features, layer.in_features)


def drawn(seed: int) -> Callable[..., Tensor | None]:
    """PEFT's mask function: 1 at entries drawn from the seed, for one layer after the other."""
    number = 0

    def mask(layer: nn.Linear, rank: int, **_: Any) -> Tensor | None:
        nonlocal number
        rng = np.random.default_rng([seed, number])
        number += 1
        if layer.weight.is_meta:  # a preview needs no entries
            return None
        count = rank * (layer.in_features + layer.out_features)
        where = rng.choice(layer.weight.numel(), count, replace=False, shuffle=False)
        flat = torch.zeros(layer.weight.numel())
        flat[torch.from_numpy(where)] = 1.0
        return flat.view(layer.weight.shape).to(layer.weight.device)

    return mask
