"""The matrix products of backward: which weights are multiplied, and how often.

A matrix costs one product a token for its own gradient, if it trains, and one for that of its
input, if anything that trains comes before it ("Backward cost" in docs/updates.md)."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from modicum.models.configs import KNOWN
from modicum.models.four_bit import count
from modicum.models.linear import is_matrix
from modicum.types import Frozen
from modicum.updates.base import Prepared
from modicum.updates.layout import depth

ADAPTER = "default"  # PEFT's name of the only adapter
Trains = Callable[[Any], bool]  # whether a parameter, or any in a module, trains


class Link(Frozen):
    """A matrix that an adapter multiplies by, or a scale, which has no product (0 numbers)."""

    numbers: int
    trains: bool


class Chain(Frozen):
    """What an adapter does, in order; `inside`: to the base layer's input; `whole`: by the gradient
    of the whole weight."""

    links: tuple[Link, ...] = ()
    inside: bool = False
    whole: bool = False


def between(layer: Any, middle: Link) -> Chain:
    """A link between the fixed A and B of a layer of PEFT."""
    rank = layer.r[ADAPTER]
    down, up = Link(rank * layer.in_features, False), Link(rank * layer.out_features, False)
    return Chain((down, middle, up))


class Product(Frozen):
    """A matrix of `numbers` entries in `module`, and how many products backward makes with it."""

    name: str
    module: Any
    numbers: int
    passes: int
    base: bool  # whether it is the model's own, not an adapter's


def place(name: str, num_layers: int) -> tuple[int, int]:
    """Where a tensor comes in the forward pass: (layer, stage within it), see `depth`."""
    layer = depth(name, num_layers)
    if layer == num_layers:
        return layer, 0 if "norm" in name else 1
    stages = enumerate(KNOWN["stages"])
    return layer, next((stage for stage, words in stages if any(w in name for w in words)), 0)


def backward_share(prepared: Prepared, trained: dict[str, nn.Parameter], num_layers: int) -> float:
    """Matrix work of backward over that of full training; above 1 for very wide adapters."""
    found = list(backward_products(prepared, trained, num_layers))
    full = sum(2 * product.numbers for product in found if product.base)
    return sum(product.passes * product.numbers for product in found) / full


def backward_products(
    prepared: Prepared, trained: dict[str, nn.Parameter], num_layers: int
) -> Iterator[Product]:
    """Every matrix of the linear layers and their adapters, with its products in backward."""
    chosen = {id(parameter) for parameter in trained.values()}
    lowest = min(place(name, num_layers) for name in trained)

    def trains(held: Any) -> bool:
        parameters = [held] if isinstance(held, Tensor) else held.parameters()
        return any(id(parameter) in chosen for parameter in parameters)

    inside: set[int] = set()  # what lies in an adapter's layer, which comes before its parts
    for name, module in prepared.model.named_modules():
        layer: Any = getattr(module, "base_layer", module)
        if id(module) in inside:
            continue
        if layer is not module:
            inside.update(map(id, module.modules()))
        if not is_matrix(layer):
            continue
        chain = Chain() if layer is module else prepared.adapter.chain(module, trains)
        after = place(name, num_layers) > lowest
        learns = any(link.trains for link in chain.links)
        own = trains(layer.weight) or (chain.whole and learns)
        passes = own + (after or (chain.inside and learns))
        yield Product(name, layer, count(layer.weight), passes, base=True)
        for link in chain.links:
            yield Product(name, layer, link.numbers, link.trains + after, base=False)
            after = after or link.trains
