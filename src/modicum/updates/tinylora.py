"""TinyLoRA (arXiv 2602.04118): a handful of numbers steer the largest directions of weights.

W + B R A with R = sum over i of v_i P_i: A and B are the largest `rank` singular directions
of W, each times the root of its singular value, P_i are fixed random rank x rank matrices
from the run's seed, and only v (`u` numbers, 0 at first) trains. `weight_tying` says how
many layers share one v: 1 all of them, 0 none, in between runs of layers in order. All
linear layers share 13 numbers by default, as in the paper's smallest setting.

PEFT does the work. The signs of singular vectors, which are arbitrary and differ between
devices, are fixed here: of every column of B the largest entry is positive, so that a run
goes on and is evaluated on another device as what it is. Seeds are spread, as PEFT counts
up from the seed by layer and runs with neighbouring seeds would share matrices.

`rate_scale` 50 is for numbers that all layers share, from the tiny base (as in `vectors`);
without tying a step goes further and the rate is better a third of that.

The singular values are computed when a run starts, is resumed, evaluated or exported: for a
model of 1.5B parameters on a CPU that takes minutes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from modicum.types import UserError
from modicum.updates.adapter import Adapter, at_least_one
from modicum.updates.chains import ADAPTER, Chain, Link, Trains


@dataclass(frozen=True)
class TinyLora(Adapter):
    """`u` numbers train, shared by all linear layers, or fewer layers with less tying."""

    name: ClassVar[str] = "tinylora"
    peft_config: ClassVar[str] = "TinyLoraConfig"
    rate_scale: ClassVar[float] = 50.0
    examples: ClassVar[tuple[str, ...]] = (
        "tinylora",
        "tinylora(u=4, weight_tying=0.0) @ last(2)",
        "tinylora(rank=3, u=5, weight_tying=0.5)",
    )
    rank: int = 2
    u: int = 13
    weight_tying: float = 1.0

    def __post_init__(self) -> None:
        at_least_one(self, rank=self.rank, u=self.u)
        if not 0 <= self.weight_tying <= 1:
            raise UserError(f"tinylora: weight_tying is between 0 and 1, not {self.weight_tying}")

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """An exported adapter brings its fixed matrices along."""
        spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
        drawn = {"projection_seed": spread, "save_projection": True}
        return {"r": self.rank, "u": self.u, "weight_tying": self.weight_tying, **drawn}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """A, R, B."""
        rank = layer.r[ADAPTER]
        vector = layer.tinylora_v[ADAPTER][layer._tinylora_v_key[ADAPTER]]
        down, up = Link(rank * layer.in_features, False), Link(rank * layer.out_features, False)
        return Chain((down, Link(rank * rank, trains(vector)), up))

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        """Fix the signs of the singular vectors."""
        for layer in model.modules():
            for name, up in getattr(layer, "tinylora_B", {}).items():
                largest = up.abs().argmax(0, keepdim=True)
                signs = torch.where(up.gather(0, largest) < 0, -1, 1)
                up.mul_(signs)
                layer.tinylora_A[name].mul_(signs.mT)  # type: ignore[index, union-attr]
