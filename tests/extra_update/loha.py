"""LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098): W + s (B1 A1) * (B2 A2), number by number.

PEFT does the work. Departure: the two products take turns, the second first, as it begins
at zero; what their gradients sum up to in a turn is evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modicum.updates.adapter import Adapter
from modicum.updates.members import Count, Steps
from modicum.updates.products import ADAPTER, Chain, Link, Trains
from modicum.updates.schedule import Decision, Turns


class Products(Turns):
    """Which product trains."""

    remembered_tensors: ClassVar[tuple[str, ...]] = ("sums",)
    kept_numbers: ClassVar[int] = 1  # sums of gradients

    def __init__(self, trainable: Mapping[str, nn.Parameter], every: int) -> None:
        super().__init__(every, "reset", 0)
        self.products = [
            frozenset(name for name in trainable if f".hada_w{number}_" in name)
            for number in (2, 1)
        ]
        self.start = self.products[0]
        self.sums: dict[str, Tensor] = {}

    def gradients(self, found: Mapping[str, Tensor]) -> None:
        for name, gradient in found.items():
            past = self.sums.get(name)
            self.sums[name] = gradient.clone() if past is None else past + gradient

    def turn(self, number: int) -> Decision:
        sizes = [float(torch.linalg.vector_norm(total)) for total in self.sums.values()]
        self.sums = {}
        return Decision(self.products[number % 2], {"turn": number + 1, "gradient": sum(sizes)})

    def typical(self, parameters: Mapping[str, nn.Parameter]) -> list[frozenset[str]]:
        return self.products


class LoHa(Adapter):
    """The change of a weight is the product, number by number, of two of low rank."""

    name: ClassVar[str] = "loha"
    peft_config: ClassVar[str] = "LoHaConfig"
    examples: ClassVar[tuple[str, ...]] = ("loha(rank=2)", "loha(rank=1, every=1) @ last(2)")
    rank: Count = 4
    every: Steps = 2

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        return {"r": self.rank, "alpha": self.rank}

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """One matrix of the weight's shape, made from the factors."""
        factors = (layer.hada_w1_a, layer.hada_w1_b, layer.hada_w2_a, layer.hada_w2_b)
        learns = any(trains(factor[ADAPTER]) for factor in factors)
        return Chain((Link(layer.get_base_layer().weight.numel(), learns),))

    def schedule(self, model: nn.Module, trainable: dict[str, nn.Parameter]) -> Products:
        return Products(trainable, self.every)
