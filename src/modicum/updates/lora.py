"""LoRA (Hu et al. 2021, arXiv 2106.09685): W + (alpha/rank) B A, where only A and B train.

PEFT does the work. Departures from its defaults, after "LoRA Without Regret" (Schulman et
al. 2025): all linear layers are adapted, the MLP's included, alpha is 32, and the learning
rate is ten times that of full training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from modicum.types import UserError
from modicum.updates.adapter import Adapter

MAX_RANK = 1024


@dataclass(frozen=True)
class LowRank(Adapter):
    """What adapters with a rank and a scale have in common."""

    rate_scale: ClassVar[float] = 10.0
    rank: int = 8
    alpha: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise UserError(f"{self.name}: rank must be between 1 and {MAX_RANK}, not {self.rank}")
        if self.alpha <= 0:
            raise UserError(f"{self.name}: alpha must be above 0, not {self.alpha}")

    def config(self, targets: list[str], seed: int) -> Any:
        """A PEFT LoraConfig without dropout."""
        import peft

        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            target_modules=targets,
            task_type="CAUSAL_LM",
            **self.settings(),
        )

    def settings(self) -> dict[str, Any]:
        """What differs from plain LoRA."""
        return {}


@dataclass(frozen=True)
class Lora(LowRank):
    """A low-rank adapter in every linear layer; `lora(rank=4) @ last(2)` says where."""

    name: ClassVar[str] = "lora"
    examples: ClassVar[tuple[str, ...]] = (
        "lora(rank=2)",
        "lora(rank=2) @ last(1)",
        "lora(rank=2) @ (last(2) & parts(attention))",
    )
