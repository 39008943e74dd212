"""What all adapters have in common: PEFT puts them into layers, they train, the base does not.

An adapter is a frozen dataclass with `config(targets, seed)`, the PEFT config that makes
it. Adapters go into every linear layer but the head, or into those that a selection names
(`lora @ last(2)`). No dropout: sampling and training would see different policies. The
base is never merged into while training.

The reference is the adapter switched off. Where the start rewrites the base's weights
(`rewrites_base`: PiSSA, OLoRA) that would be another model; there the adapter's first
values are kept and swapped in.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from modicum.types import UserError
from modicum.updates.base import Method, Prepared, Selection, Swap
from modicum.updates.rules import Rule
from modicum.updates.schedule import Schedule


class AdapterPrepared(Prepared):
    """A PEFT model whose adapter trains; the reference is the adapter switched off."""

    def __init__(
        self,
        model: nn.Module,
        trainable: dict[str, nn.Parameter],
        rewrites_base: bool = False,
        start_tolerance: float = 1e-6,
        schedule: Schedule | None = None,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(model, trainable, schedule, rule)
        self.rewrites_base = rewrites_base
        self.start_tolerance = start_tolerance
        self.swap = Swap(trainable)

    def keep_reference(self) -> None:
        """Keep the adapter's first values where the base was rewritten; else nothing."""
        if self.rewrites_base:
            self.swap.keep()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off, or to its start, and on again afterwards."""
        flags = {name: p.requires_grad for name, p in self.model.named_parameters()}
        try:
            if self.rewrites_base:
                with self.swap.swapped():
                    yield
            else:
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


class Adapter(Method):
    """A PEFT adapter. Members say their config; the rest is here, to be overridden."""

    rewrites_base: ClassVar[bool] = False
    start_tolerance: ClassVar[float] = 1e-6
    """How far the logits of the start may be from the base's, from rounding or by design."""

    @abstractmethod
    def config(self, targets: list[str], seed: int) -> Any:
        """The PEFT config that puts the adapter into the modules named `targets`."""

    def targets(self, model: nn.Module, where: Selection | None) -> list[str]:
        """The modules that get an adapter."""
        return linear_layers(model, where)

    def trains(self, name: str) -> bool:
        """Whether the tensor `name`, which PEFT would train, does train."""
        return True

    def schedule(self, model: nn.Module, trainable: dict[str, nn.Parameter]) -> Schedule | None:
        """What is driven or scaled while training; None: nothing."""
        return None

    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        """Put the adapter into `model`; what is random in it is drawn from `seed`."""
        import peft

        targets = self.targets(model, where)
        config = self.config(targets, seed)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT asks transformers for a name that is to go; nothing of ours.
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            adapted: Any = peft.get_peft_model(model, config)  # type: ignore[arg-type]
        adapted.eval()
        trainable = {
            n: p for n, p in adapted.named_parameters() if p.requires_grad and self.trains(n)
        }
        return AdapterPrepared(
            adapted,
            trainable,
            self.rewrites_base,
            self.start_tolerance,
            self.schedule(adapted, trainable),
        )
