"""What every update has in common: it is applied to a model and says what trains.

An update is a frozen dataclass with `apply(model, seed) -> Prepared`. After that exactly
the tensors in `Prepared.trainable` have `requires_grad`, all others have it off and no
gradient. `Prepared.reference()` turns the model into what it was before training, for as
long as a `with` block lasts, without a second model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from modicum.spec import Spec
from modicum.types import UserError
from modicum.updates.layout import Layout, depth, layout


class Prepared(ABC):
    """A model with an update applied.

    `model` is what sampling and training run, `trainable` the tensors that train by
    name, `frozen` all others.
    """

    def __init__(self, model: nn.Module, trainable: dict[str, nn.Parameter]) -> None:
        if not trainable:
            raise UserError("the update leaves nothing to train")
        self.model = model
        self.trainable = trainable
        chosen = {id(p) for p in trainable.values()}
        self.frozen = {n: p for n, p in model.named_parameters() if id(p) not in chosen}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None

    @property
    def lowest_layer(self) -> int:
        """The lowest layer that trains; -1: the embedding, number of layers: only what is above."""
        count = self.model.config.num_hidden_layers  # type: ignore[union-attr]
        return min(depth(name, count) for name in self.trainable)

    @abstractmethod
    def keep_reference(self) -> None:
        """Remember what `reference` needs; call before the first change."""

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """A context in which the model is what it was when it was prepared."""

    @abstractmethod
    def merged(self) -> nn.Module:
        """The ordinary model with the update inside; `model` is spent afterwards."""


@runtime_checkable
class Update(Protocol):
    """Something that trains a part of a model."""

    rate_scale: float

    def apply(self, model: nn.Module, seed: int) -> Prepared:
        """Freeze what does not train and return what does; UserError if nothing fits."""
        ...


class DensePrepared(Prepared):
    """Some of the model's own tensors train; the reference is a copy of their old values."""

    def __init__(self, model: nn.Module, trainable: dict[str, nn.Parameter]) -> None:
        super().__init__(model, trainable)
        self.originals: dict[str, Tensor] = {}

    def keep_reference(self) -> None:
        """Copy the values of what trains, and of nothing else."""
        self.originals = {name: p.detach().clone() for name, p in self.trainable.items()}

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Swap the copies in, and the trained tensors back afterwards."""
        assert self.originals, "keep_reference was not called"
        trained = {name: p.data for name, p in self.trainable.items()}
        for name, parameter in self.trainable.items():
            parameter.data = self.originals[name]
        try:
            yield
        finally:
            for name, parameter in self.trainable.items():
                parameter.data = trained[name]

    def merged(self) -> nn.Module:
        """The model itself."""
        return self.model


class Selection(Spec, ABC):
    """A dense update: a predicate on parameters. `a + b` is the union, `a & b` both."""

    rate_scale: ClassVar[float] = 1.0

    @abstractmethod
    def names(self, layout: Layout) -> set[str]:
        """The names of the selected parameters."""

    def apply(self, model: nn.Module, seed: int) -> Prepared:
        """Train the selected tensors of `model` in place."""
        return DensePrepared(model, self.select(model))

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The selected parameters by name; UserError when there are none."""
        places = layout(model)
        chosen = self.names(places)
        if not chosen:
            parts = sorted({part for place in places.places.values() for part in place.parts})
            raise UserError(
                f"{self} selects nothing in this model ({places.num_layers} layers;"
                f" parts: {', '.join(parts)})"
            )
        return {name: p for name, p in model.named_parameters() if name in chosen}

    def __add__(self, other: object) -> Union:
        return Union(self, other) if isinstance(other, Selection) else NotImplemented

    def __and__(self, other: object) -> Intersection:
        return Intersection(self, other) if isinstance(other, Selection) else NotImplemented


@dataclass(frozen=True)
class Union(Selection):
    """What either selects."""

    left: Selection
    right: Selection

    def names(self, layout: Layout) -> set[str]:
        return self.left.names(layout) | self.right.names(layout)

    def __str__(self) -> str:
        sides = [
            f"({s})" if isinstance(s, Intersection) else str(s) for s in (self.left, self.right)
        ]
        return " + ".join(sides)


@dataclass(frozen=True)
class Intersection(Selection):
    """What both select."""

    left: Selection
    right: Selection

    def names(self, layout: Layout) -> set[str]:
        return self.left.names(layout) & self.right.names(layout)

    def __str__(self) -> str:
        sides = [f"({s})" if isinstance(s, Union) else str(s) for s in (self.left, self.right)]
        return " & ".join(sides)
