"""LoRA (Hu et al. 2021, arXiv 2106.09685): W + (alpha/rank) B A, where only A and B train.

PEFT does the work. Departures from its defaults, after "LoRA Without Regret" (Schulman et
al. 2025): all linear layers are adapted, the MLP's included, alpha is 32, and the learning
rate is ten times that of full training. No dropout: it would make the log-probs of
sampling and training differ. The base is never merged into during training.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from modicum.spec import Spec
from modicum.types import UserError
from modicum.updates.base import Prepared, Selection

MAX_RANK = 1024


class AdapterPrepared(Prepared):
    """A PEFT model whose adapter trains; the reference is the adapter switched off."""

    def keep_reference(self) -> None:
        """Nothing to keep: the base is untouched."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off, and on again afterwards."""
        flags = {name: p.requires_grad for name, p in self.model.named_parameters()}
        try:
            with self.model.disable_adapter():  # type: ignore[operator]
                yield
        finally:
            # PEFT's switch sets requires_grad by its own rule; put back what was.
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(flags[name])

    def merged(self) -> nn.Module:
        """The base with the adapter added, in fp32."""
        return self.model.float().merge_and_unload()  # type: ignore[operator]


def linear_layers(model: nn.Module, where: Selection | None) -> list[str]:
    """Names of the linear layers to adapt: the selected ones, or all but the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if where is None:
        return [name for name, module in linear.items() if module is not head]
    # By identity: a tied head has no name of its own among the parameters.
    chosen = {id(parameter) for parameter in where.select(model).values()}
    found = [name for name, module in linear.items() if id(module.weight) in chosen]
    tied = head is not None and head.weight is model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    if any(linear[name] is head for name in found) and tied:
        raise UserError(f"the head is tied to the embedding and takes no adapter ({where})")
    if not found:
        raise UserError(f"{where} selects no linear layer that an adapter could go into")
    return found


@dataclass(frozen=True)
class Lora(Spec):
    """A low-rank adapter in every linear layer; `lora(rank=4) @ last(2)` says where."""

    name: ClassVar[str] = "lora"
    rate_scale: ClassVar[float] = 10.0
    rank: int = 8
    alpha: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise UserError(f"lora: rank must be between 1 and {MAX_RANK}, not {self.rank}")
        if self.alpha <= 0:
            raise UserError(f"lora: alpha must be above 0, not {self.alpha}")

    def __matmul__(self, where: object) -> Placed:
        return Placed(self, where) if isinstance(where, Selection) else NotImplemented

    def apply(self, model: nn.Module, seed: int, where: Selection | None = None) -> Prepared:
        """Put an adapter into the linear layers of `model`; A is drawn from `seed`."""
        import peft

        targets = linear_layers(model, where)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT asks transformers for a name that is to go; nothing of ours.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            adapted: Any = peft.get_peft_model(model, config)  # type: ignore[arg-type]
        adapted.eval()
        trainable = {n: p for n, p in adapted.named_parameters() if ".lora_" in n}
        assert len(trainable) == 2 * len(targets), "an adapter did not reach its layer"
        return AdapterPrepared(adapted, trainable)


@dataclass(frozen=True)
class Placed:
    """An adapter and the selection that it goes into."""

    adapter: Lora
    where: Selection

    @property
    def rate_scale(self) -> float:
        """That of the adapter."""
        return self.adapter.rate_scale

    def apply(self, model: nn.Module, seed: int) -> Prepared:
        """Put the adapter into the selected linear layers."""
        return self.adapter.apply(model, seed, self.where)

    def __str__(self) -> str:
        single = " " not in str(self.where)
        return f"{self.adapter} @ {self.where}" if single else f"{self.adapter} @ ({self.where})"
