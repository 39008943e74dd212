"""The matrix products of backward: which weights are multiplied, and how often.

A matrix costs one product a token for its own gradient, if it trains, and one for that of its
input, if anything that trains comes before it ("Backward cost" in docs/updates.md).

And the preview of an update, before any weight is loaded: the model is built from its config on
torch's meta device, with names and shapes and no memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Any

import torch
from torch import Tensor, nn

from modicum.config import Trust
from modicum.models.four_bit import count
from modicum.models.linear import is_matrix
from modicum.models.load import read_config, skeleton, structure
from modicum.report.words import environment
from modicum.updates.base import Prepared, Update
from modicum.updates.layout import depth, layout

ADAPTER = "default"  # PEFT's name of the only adapter
GRADIENT_BYTES = 4  # of a trained number
Trains = Callable[[Any], bool]  # whether a parameter, or any in a module, trains

# What a layer does in order; the first line that fits a name is its stage.
STAGES = (
    ("input_layernorm",),
    ("q_proj", "k_proj", "v_proj", "qkv_proj", "q_norm", "k_norm"),
    ("o_proj",),
    ("post_attention_layernorm", "pre_feedforward_layernorm"),
    ("gate_proj", "up_proj"),
    ("down_proj", "post_feedforward_layernorm"),
)


@dataclass(frozen=True)
class Link:
    """A matrix that an adapter multiplies by, or a scale, which has no product (0 numbers)."""

    numbers: int
    trains: bool


@dataclass(frozen=True)
class Chain:
    """What an adapter does, in order; `inside`: to the base layer's input; `whole`: by the gradient
    of the whole weight."""

    links: tuple[Link, ...] = ()
    inside: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Product:
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
    return layer, next((i for i, words in enumerate(STAGES) if any(w in name for w in words)), 0)


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
        passes = (trains(layer.weight) or (chain.whole and learns)) + (
            after or (chain.inside and learns)
        )
        yield Product(name, layer, count(layer.weight), passes, base=True)
        for link in chain.links:
            yield Product(name, layer, link.numbers, link.trains + after, base=False)
            after = after or link.trains


@dataclass(frozen=True)
class Preview:
    """What an update trains; sizes in numbers or bytes, shares of the model or of full training.
    Under a schedule `parameters`, the bytes and `backward_share` are what is expected on average of
    what trains at a time; `tensors`, `ever` and `names` are of all that may."""

    update: str
    model: str
    tensors: int
    parameters: int
    ever: int
    total_parameters: int
    share: float
    gradient_bytes: int
    optimizer_bytes: int
    lowest_layer: int | None  # num_layers: only what is above; None: the embedding
    num_layers: int
    backward_share: float  # matrix work of backward, as a share of that of full training
    notes: list[str]
    names: list[str]

    def text(self) -> str:
        return environment().get_template("preview.txt").render(vars(self)).rstrip()


def preview(update: Update, model: str, trust: Trust | None = None, base: str = "") -> Preview:
    """The preview of `update` on the model that `model` names (its config alone is read)."""
    bare = skeleton(read_config(model, trust, base), trust=trust)
    num_layers = layout(bare).num_layers
    prepared = update.apply(structure(bare, model, trust, base), seed=0)
    total = sum(p.numel() for p in prepared.model.parameters())
    trained, schedule, lowest = prepared.trainable, prepared.schedule, prepared.lowest_ever
    sizes = {n: schedule.size(n, p) for n, p in trained.items()}
    moments = {name: optimizer_bytes(prepared, name) for name in trained}
    typical = schedule.typical(trained)

    def average(of: dict[str, int]) -> float:
        return mean(sum(of[name] for name in chosen) for chosen in typical)

    # Of tensors of which only entries train one has its whole gradient at a time.
    partial = {n: p.numel() if sizes[n] < p.numel() else 0 for n, p in trained.items()}
    one = mean(max(partial[name] for name in chosen) for chosen in typical)
    shares = (
        backward_share(prepared, {n: trained[n] for n in chosen}, num_layers) for chosen in typical
    )
    return Preview(
        update=str(update),
        model=model,
        tensors=len(trained),
        parameters=round(average(sizes)),
        ever=sum(sizes.values()),
        total_parameters=total,
        share=average(sizes) / total,
        gradient_bytes=round(GRADIENT_BYTES * (average(sizes) + one)),
        optimizer_bytes=(
            sum(moments.values()) if schedule.policy == "keep" else round(average(moments))
        ),
        lowest_layer=None if lowest < 0 else lowest,
        num_layers=num_layers,
        backward_share=mean(shares),
        notes=prepared.notes,
        names=sorted(trained),
    )


def optimizer_bytes(prepared: Prepared, name: str) -> int:
    """Bytes that the optimizer keeps of a tensor, or of the entries of it that train."""
    parameter = prepared.trainable[name]
    size = prepared.schedule.size(name, parameter)
    whole = size == parameter.numel()
    return prepared.rule.state_bytes(name, parameter.shape if whole else torch.Size([size]))
