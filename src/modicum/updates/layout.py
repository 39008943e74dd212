"""Which layer and which part every parameter of a decoder belongs to."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
MAX_LAYERS = 10_000  # of any model
PARTS = ("attention", "mlp", "norm", "bias", "embedding", "head")


@dataclass(frozen=True)
class Place:
    """Where one parameter lives: its layer (None outside the layers) and its parts.

    A parameter can be of several parts: the bias of a query projection is `attention` and
    `bias`; a tied embedding is `embedding` and `head`.
    """

    layer: int | None
    parts: frozenset[str]


@dataclass(frozen=True)
class Layout:
    """The places of all parameters, by the name that `named_parameters` gives."""

    places: dict[str, Place]
    num_layers: int


def layout(model: nn.Module) -> Layout:
    """The layout of a Hugging Face causal language model."""
    inputs = model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    head = model.get_output_embeddings()  # type: ignore[operator]
    outputs = None if head is None else head.weight
    places: dict[str, Place] = {}
    for name, parameter in model.named_parameters():
        found = LAYER.search(name)
        parts = set()
        words = name.split(".")
        if any(word in ("self_attn", "attn", "attention") for word in words):
            parts.add("attention")
        if any(word in ("mlp", "feed_forward") for word in words):
            parts.add("mlp")
        if any("norm" in word or word.startswith("ln_") for word in words):
            parts.add("norm")
        if words[-1] == "bias":
            parts.add("bias")
        if parameter is inputs:
            parts.add("embedding")
        if parameter is outputs or (head is not None and parameter is getattr(head, "bias", None)):
            parts.add("head")
        places[name] = Place(int(found[1]) if found else None, frozenset(parts))
    layers = {place.layer for place in places.values() if place.layer is not None}
    return Layout(places, len(layers))


def divided(
    layout: Layout, names: Iterable[str]
) -> tuple[dict[int, frozenset[str]], frozenset[str], frozenset[str]]:
    """The names in decoder layers, by layer from the bottom up; those below these, those above."""
    found: dict[int, set[str]] = {}
    for name in names:
        found.setdefault(depth(name, layout.num_layers), set()).add(name)
    below, above = frozenset(found.pop(-1, ())), frozenset(found.pop(layout.num_layers, ()))
    return {layer: frozenset(found[layer]) for layer in sorted(found)}, below, above


def depth(name: str, num_layers: int) -> int:
    """How far up a tensor is: its layer, -1 for the embedding, `num_layers` above the layers."""
    found = LAYER.search(name)
    if found is not None:
        return int(found[1])
    return -1 if "embed" in name else num_layers
