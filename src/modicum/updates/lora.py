"""LoRA and its variants: W + s B A, where only A and B train; s is alpha/rank.

LoRA: Hu et al. 2021 (arXiv 2106.09685). PEFT does the work. Departures from its defaults,
after "LoRA Without Regret" (Schulman et al. 2025): all linear layers are adapted, the
MLP's included, alpha is 32, and the learning rate is ten times that of full training.

The variants, each one change to LoRA:
- rsLoRA (arXiv 2312.03732): s = alpha/sqrt(rank), so that a step does not shrink with rank.
- LoRA+ (arXiv 2402.12354): B's learning rate is `ratio` times that of A.
- LoRA-FA (arXiv 2308.03303): A stays as it was drawn, B trains. Departure: the correction
  of B's gradient in the paper's later version (PEFT has it in its optimizer) is left out.
- DoRA (arXiv 2402.09353): W' = m (W + s B A) / |W + s B A|, a norm for each output row, not
  differentiated; m trains too and starts as the norm of W.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from modicum.limits import Limits
from modicum.models.linear import adapted_layers, matrix
from modicum.types import UserError
from modicum.updates.adapter import Adapter
from modicum.updates.base import Selection
from modicum.updates.members import Count, Rank
from modicum.updates.schedule import Schedule
from modicum.updates.targets import experts


@dataclass(frozen=True)
class LowRank(Adapter):
    """What adapters with a rank and a scale have in common."""

    peft_config = "LoraConfig"
    links = ("lora_A", "lora_B")
    goes_on = True
    passed: ClassVar[dict[str, str]] = {"rank": "r", "alpha": "lora_alpha"}
    rank: Rank = 8
    alpha: Count = 32


@dataclass(frozen=True)
class Lora(LowRank):
    """A low-rank adapter in every linear layer; `lora(rank=4) @ last(2)` says where.

    `experts=True` also adapts the experts of a mixture that are no linear layers, with A and B
    of their own for every expert.
    """

    examples = (
        "lora(rank=2)",
        "lora(rank=2) @ last(1)",
        "lora(rank=2) @ (last(2) & parts(attention))",
    )
    experts: bool = False

    def parameters(self, model: nn.Module, where: Selection | None) -> list[str]:
        found = experts(model, where) if self.experts else []
        if self.experts and not found:
            raise UserError(f"{self}: {where or 'this model'} has no experts in one tensor")
        return found


@dataclass(frozen=True)
class RsLora(LowRank):
    """LoRA scaled by alpha/sqrt(rank): the step keeps its size as the rank grows.

    At rank 8 and alpha 12 the scale (4.2) is about that of `lora` (4).
    """

    examples = ("rslora(rank=4)",)
    fixed: ClassVar[dict[str, Any]] = {"use_rslora": True}
    alpha: Count = 12


@dataclass(frozen=True)
class LoraPlus(LowRank):
    """LoRA whose B learns `ratio` times as fast as A.

    The run's learning rate is that of A.
    """

    examples = ("loraplus(rank=2, ratio=4.0)",)
    ratio: Annotated[float, Limits(0, 1024, above=True)] = 16.0

    def schedule(self, model: nn.Module, trainable: dict[str, nn.Parameter]) -> Schedule:
        return Schedule(rates={n: self.ratio for n in trainable if ".lora_B." in n})


@dataclass(frozen=True)
class LoraFa(LowRank):
    """LoRA whose A stays as drawn: half the trained numbers, and no wide input is kept."""

    examples = ("lorafa(rank=2)", "lorafa(rank=2) @ last(1)")

    def trains(self, name: str) -> bool:
        return ".lora_B." in name


@dataclass(frozen=True)
class Dora(LowRank):
    """LoRA for the direction of each output row, and its length as a number of its own."""

    examples = ("dora(rank=2)", "dora(rank=2) @ last(1)")
    fixed: ClassVar[dict[str, Any]] = {"use_dora": True}

    @torch.no_grad()
    def finish(self, model: Any) -> None:
        """Take the norms in fp32: PEFT rounds them to the base's dtype and divides by exact ones."""
        for layer in adapted_layers(model):
            lengths = matrix(layer.base_layer).float().norm(dim=1)
            layer.lora_magnitude_vector["default"].weight.data = lengths
