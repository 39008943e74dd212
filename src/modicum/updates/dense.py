"""Dense selections: whole layers by their place, and parts by kind.

Sources: arXiv 1911.03090 (last layers), 2106.10199 (biases), 2210.11466 (blocks). Departure:
embedding, final norm and head stay frozen unless they are asked for. With tied embeddings
training the head trains the embedding, and backward reaches the bottom of the model."""

from abc import abstractmethod
from collections.abc import Container
from dataclasses import field, replace
from typing import ClassVar, Literal
from zlib import crc32

import numpy as np
from torch import nn

from modicum.spec import nearest
from modicum.types import UserError
from modicum.updates import members
from modicum.updates.base import Selection
from modicum.updates.layout import PARTS, Layout
from modicum.updates.layout import layout as layout_of
from modicum.updates.members import LayersOrNone

RANDOM = "random"


def split(count: int, of: int) -> list[range]:
    """`count` things in a row as `of` near-equal runs; the longer ones spread evenly."""
    return [range(count * i // of, count * (i + 1) // of) for i in range(of)]


class Full(Selection):
    """Every tensor trains."""

    kind = "whole model"

    def names(self, layout: Layout) -> set[str]:
        return set(layout.places)


class Region(Selection):
    """Whole decoder layers, and what lies outside of them if it is asked for."""

    kind = "layers"
    embedding: bool = field(default=False, kw_only=True)
    norm: bool = field(default=False, kw_only=True)
    head: bool = field(default=False, kw_only=True)

    @abstractmethod
    def chosen(self, layout: Layout) -> Container[int | None]:
        """The numbers of the layers; UserError where the model has no such layers."""

    def names(self, layout: Layout) -> set[str]:
        layers = self.chosen(layout)
        ends = {part for part in ("embedding", "norm", "head") if getattr(self, part)}
        return {
            name
            for name, place in layout.places.items()
            if (place.parts & ends if place.layer is None else place.layer in layers)
        }


class First(Region):
    """The first k decoder layers: saves memory, not backward time."""

    height: ClassVar[float] = 0.0  # how far up: with none of the other layers below, half or all
    k: members.Layers

    def chosen(self, layout: Layout) -> range:
        left = layout.num_layers - self.k
        if left < 0:
            raise UserError(f"{self}: the model has only {layout.num_layers} layers")
        start = int(left * self.height)
        return range(start, start + self.k)


class Last(First):
    """The last k decoder layers: backward stops below them."""

    height = 1.0


class Middle(First):
    """The k decoder layers in the middle; an odd one out lies above."""

    height = 0.5


class Every(Region):
    """Every so many decoder layers: number offset, offset + stride and so on, from 0."""

    stride: members.Layers
    offset: LayersOrNone = 0

    def chosen(self, layout: Layout) -> range:
        if self.offset >= layout.num_layers:
            raise UserError.of("no_layer", by=self, layer=self.offset, last=layout.num_layers - 1)
        return range(self.offset, layout.num_layers, self.stride)


class Layers(Region):
    """The decoder layers with these numbers, from 0; negative numbers count from the end.

    `layers(random, 2)` are two that the run's seed draws; more of them hold the fewer."""

    varargs = "indices"
    indices: tuple[int | Literal["random"], ...]

    def __post_init__(self) -> None:
        if not self.indices:
            raise UserError("layers() needs the numbers of the layers, such as layers(2, 3)")
        pair = len(self.indices) == 2 and min(self._numbers, default=0) > 0
        if RANDOM in self.indices and not (pair and self.indices[0] == RANDOM):
            raise UserError.of("random_layers", update=self)

    @property
    def _numbers(self) -> list[int]:
        return [index for index in self.indices if isinstance(index, int)]

    def settled(self, model: nn.Module, seed: int) -> Selection:
        if RANDOM not in self.indices:
            return self
        there, count = layout_of(model).num_layers, self._numbers[0]
        if count > there:
            raise UserError(f"{self}: the model has only {there} layers")
        order = np.random.default_rng([seed, crc32(b"layers")]).permutation(there)
        return replace(self, indices=tuple(sorted(order[:count].tolist())))

    def chosen(self, layout: Layout) -> set[int]:
        count = layout.num_layers
        assert RANDOM not in self.indices, f"{self} is not settled"
        if odd := [index for index in self._numbers if not -count <= index < count]:
            raise UserError.of("no_layer", by=self, layer=odd[0], last=count - 1)
        return {index % count for index in self._numbers}


class Surgical(Region):
    """One block of layers, of a few near-equal ones from the bottom (0) to the top."""

    block: int
    of: members.Layers = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.block < self.of:
            raise UserError(f"{self}: the block must be between 0 and {self.of - 1}")

    def chosen(self, layout: Layout) -> range:
        if self.of > layout.num_layers:
            raise UserError(f"{self}: the model has only {layout.num_layers} layers to split")
        return split(layout.num_layers, self.of)[self.block]


class Parts(Selection):
    """Parts by kind, in every layer: attention, mlp, norm, bias, embedding, head."""

    kind = "parts of layers"
    varargs = "kinds"
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


class BitFit(Selection):
    """All biases; a model without any is refused."""

    kind = "parts of layers"

    def names(self, layout: Layout) -> set[str]:
        found = {name for name, place in layout.places.items() if "bias" in place.parts}
        if not found:
            raise UserError.of("no_bias", update=self)
        return found
