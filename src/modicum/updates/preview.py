"""What an update would train in a model, and what that costs, before any weight is loaded.

The model is built from its config on torch's meta device: names and shapes, no memory.
Backward cost counts matrix products only (`products`, F.2 in docs/updates.md): gradients of
what trains, and gradients of activations down to the lowest trained tensor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Any

import torch

from modicum.config import Trust
from modicum.models.load import read_config, skeleton, structure
from modicum.updates.base import Prepared, Update
from modicum.updates.layout import layout
from modicum.updates.products import backward_share

GRADIENT_BYTES = 4  # of a trained number


@dataclass(frozen=True)
class Preview:
    """What an update trains; sizes in numbers or bytes, shares of the model or of full training.

    Under a schedule `parameters`, the bytes and `backward_share` are what is expected on
    average of what trains at a time; `tensors`, `ever` and `names` are of all that may.
    """

    update: str
    model: str
    tensors: int
    parameters: int
    ever: int
    total_parameters: int
    share: float
    gradient_bytes: int
    optimizer_bytes: int
    lowest_layer: int | None
    """The lowest trained layer (num_layers: only what is above); None: the embedding."""
    num_layers: int
    backward_share: float
    """Matrix work of backward, as a share of that of full training."""
    notes: list[str]
    names: list[str]

    def to_json(self) -> dict[str, Any]:
        """The preview as JSON values."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """The preview for a reader."""
        shown = self.names if len(self.names) <= 14 else [*self.names[:12], "..."]
        below = (
            "the embedding trains: backward runs through the whole model"
            if self.lowest_layer is None
            else f"lowest trained layer {self.lowest_layer} of 0..{self.num_layers - 1}"
        )
        average = "" if self.parameters == self.ever else f", on average; {self.ever:,} may"
        lines = [
            f"{self.update} on {self.model}",
            f"tensors        {self.tensors}",
            f"parameters     {self.parameters:,} of {self.total_parameters:,}"
            f" ({self.share:.2%}){average}",
            f"gradients      {self.gradient_bytes:,} bytes",
            f"optimizer      {self.optimizer_bytes:,} bytes",
            f"backward       {self.backward_share:.0%} of full training's; {below}",
            *(f"note           {note}" for note in self.notes),
            *(f"  {name}" for name in shown),
        ]
        return "\n".join(lines)


def preview(update: Update, model: str, trust: Trust | None = None, base: str = "") -> Preview:
    """The preview of `update` on the model that `model` names (its config alone is read)."""
    bare = skeleton(read_config(model, trust, base), trust=trust)
    places = layout(bare)
    prepared = update.apply(structure(bare, model, trust, base), seed=0)
    total = sum(p.numel() for p in prepared.model.parameters())
    lowest = prepared.lowest_ever
    trained = prepared.trainable
    sizes = {n: prepared.schedule.size(n, p) for n, p in trained.items()}
    moments = {name: optimizer_bytes(prepared, name) for name in trained}
    typical = prepared.schedule.typical(trained)
    keeps = prepared.schedule.policy == "keep"
    shares = [
        backward_share(prepared, {n: trained[n] for n in chosen}, places.num_layers)
        for chosen in typical
    ]
    numbers = mean(sum(sizes[n] for n in chosen) for chosen in typical)
    return Preview(
        update=str(update),
        model=model,
        tensors=len(trained),
        parameters=round(numbers),
        ever=sum(sizes.values()),
        total_parameters=total,
        share=numbers / total,
        gradient_bytes=round(
            GRADIENT_BYTES
            * mean(_gradients({n: trained[n].numel() for n in chosen}, sizes) for chosen in typical)
        ),
        optimizer_bytes=(
            sum(moments.values())
            if keeps
            else round(mean(sum(moments[n] for n in chosen) for chosen in typical))
        ),
        lowest_layer=None if lowest < 0 else lowest,
        num_layers=places.num_layers,
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


def _gradients(whole: dict[str, int], sizes: dict[str, int]) -> int:
    """Numbers of gradient: of what trains, and one whole tensor of which only entries do."""
    partial = [size for name, size in whole.items() if sizes[name] < size]
    return sum(sizes[name] for name in whole) + max(partial, default=0)
