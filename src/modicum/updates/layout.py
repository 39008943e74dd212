"""Which layer and which part every parameter of a decoder belongs to."""

import re
from collections.abc import Iterable

from torch import nn

from modicum.models.configs import KNOWN
from modicum.types import Frozen, UserError

WORDS = {kind: re.compile(words) for kind, words in KNOWN["words"].items()}
"""Of the names that architectures give to parameters."""
MERGE = "modicum export --model ADAPTER --out FOLDER --format merged makes one model of both"
PARTS = ("attention", "mlp", "norm", "bias", "embedding", "head")


class Place(Frozen):
    """The layer of a parameter (None: outside) and its parts: a query's bias is attention and bias."""

    layer: int | None
    parts: frozenset[str]


class Layout(Frozen):
    """The places of all parameters, by the name that `named_parameters` gives."""

    places: dict[str, Place]
    num_layers: int


def layer_of(name: str) -> int | None:
    """The layer of the text model that a tensor belongs to."""
    found = WORDS["layer"].search(name)
    return int(found[1]) if found and not WORDS["others"].search(name) else None


def layout(model: nn.Module) -> Layout:
    """The layout of a Hugging Face causal language model; UserError for an adapter on one."""
    if hasattr(model, "get_base_model"):
        raise UserError.of("dense_on_adapter", merge=MERGE)
    inputs = model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    head = model.get_output_embeddings()  # type: ignore[operator]
    outputs = () if head is None else (head.weight, getattr(head, "bias", None))
    places: dict[str, Place] = {}
    for name, parameter in model.named_parameters():
        layer, words = layer_of(name), name.split(".")[:-1]
        norms = [word for word in words if WORDS["norm"].search(word)]
        within = [word for word in words if word not in norms and layer is not None]
        parts = {kind: any(map(WORDS[kind].search, within)) for kind in ("attention", "mlp")}
        parts |= {"norm": bool(norms), "bias": name.endswith("bias")}
        parts["embedding"] = parameter is inputs
        parts["head"] = any(parameter is held for held in outputs)
        places[name] = Place(layer, frozenset(part for part, there in parts.items() if there))
    layers = {place.layer for place in places.values() if place.layer is not None}
    return Layout(places, len(layers))


def divided(
    model: nn.Module, names: Iterable[str]
) -> tuple[dict[int, frozenset[str]], frozenset[str], frozenset[str]]:
    """The names in decoder layers, by layer from the bottom up; those below these, those above."""
    found: dict[int, set[str]] = {}
    count = layout(model).num_layers
    for name in names:
        found.setdefault(depth(name, count), set()).add(name)
    below, above = frozenset(found.pop(-1, ())), frozenset(found.pop(count, ()))
    return {layer: frozenset(found[layer]) for layer in sorted(found)}, below, above


def depth(name: str, num_layers: int) -> int:
    """How far up a tensor is: its layer, -1 for the embedding, `num_layers` above the layers."""
    layer = layer_of(name)
    if layer is not None:
        return layer
    return -1 if WORDS["embedding"].search(name) else num_layers
