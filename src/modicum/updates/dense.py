"""Dense selections: full, first(k), last(k), middle(k), layers(...), parts(...).

Source: Lee, Tang, Lin 2019 (arXiv 1911.03090) for training only the last layers.
Departure: embeddings, head and final norm stay frozen unless `parts` names them. With
tied embeddings the head is the embedding: training one trains the other, and backward
then reaches the bottom of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from modicum.spec import nearest
from modicum.types import UserError
from modicum.updates.base import Selection
from modicum.updates.layout import PARTS, Layout


def _in_layers(layout: Layout, wanted: range | set[int]) -> set[str]:
    return {name for name, place in layout.places.items() if place.layer in wanted}


@dataclass(frozen=True)
class Full(Selection):
    """Every tensor trains."""

    name: ClassVar[str] = "full"
    examples: ClassVar[tuple[str, ...]] = ("full",)

    def names(self, layout: Layout) -> set[str]:
        return set(layout.places)


@dataclass(frozen=True)
class _Count(Selection):
    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"{self.name}({self.k}): the number of layers must be at least 1")

    def check(self, layout: Layout) -> int:
        """The number of layers of the model, at least k."""
        if self.k > layout.num_layers:
            raise UserError(f"{self}: the model has only {layout.num_layers} layers")
        return layout.num_layers


@dataclass(frozen=True)
class First(_Count):
    """The first k decoder layers: saves memory, not backward time."""

    name: ClassVar[str] = "first"
    examples: ClassVar[tuple[str, ...]] = ("first(2)",)

    def names(self, layout: Layout) -> set[str]:
        self.check(layout)
        return _in_layers(layout, range(self.k))


@dataclass(frozen=True)
class Last(_Count):
    """The last k decoder layers: backward stops below them."""

    name: ClassVar[str] = "last"
    examples: ClassVar[tuple[str, ...]] = (
        "last(1)",
        "last(1) + parts(norm)",
        "last(2) & parts(mlp)",
    )

    def names(self, layout: Layout) -> set[str]:
        total = self.check(layout)
        return _in_layers(layout, range(total - self.k, total))


@dataclass(frozen=True)
class Middle(_Count):
    """The k decoder layers in the middle; an odd one out lies above."""

    name: ClassVar[str] = "middle"
    examples: ClassVar[tuple[str, ...]] = ("middle(1)",)

    def names(self, layout: Layout) -> set[str]:
        start = (self.check(layout) - self.k) // 2
        return _in_layers(layout, range(start, start + self.k))


@dataclass(frozen=True)
class Layers(Selection):
    """The decoder layers with these numbers, from 0; negative numbers count from the end."""

    name: ClassVar[str] = "layers"
    examples: ClassVar[tuple[str, ...]] = ("layers(0, -1)",)
    varargs: ClassVar[str | None] = "indices"
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.indices:
            raise UserError("layers() needs the numbers of the layers, such as layers(2, 3)")

    def names(self, layout: Layout) -> set[str]:
        wanted = set()
        for index in self.indices:
            if not -layout.num_layers <= index < layout.num_layers:
                last = layout.num_layers - 1
                raise UserError(f"{self}: there is no layer {index}; they are 0 to {last}")
            wanted.add(index % layout.num_layers)
        return _in_layers(layout, wanted)


@dataclass(frozen=True)
class Parts(Selection):
    """Parts by kind, in every layer: attention, mlp, norm, bias, embedding, head."""

    name: ClassVar[str] = "parts"
    examples: ClassVar[tuple[str, ...]] = ("parts(attention, norm)", "parts(head)")
    varargs: ClassVar[str | None] = "kinds"
    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.kinds:
            raise UserError(f"parts() needs at least one of {', '.join(PARTS)}")
        for kind in self.kinds:
            if kind not in PARTS:
                raise UserError(f"unknown part {kind!r}; {nearest(kind, PARTS)}")

    def names(self, layout: Layout) -> set[str]:
        wanted = set(self.kinds)
        return {name for name, place in layout.places.items() if place.parts & wanted}
