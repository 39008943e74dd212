"""What an update would train in a model, and what that costs, before any weight is loaded.

The model is built from its config on torch's meta device: names and shapes, no memory."""

from statistics import fmean as mean

import torch

from modicum.config import Trust
from modicum.models.load import read_config, skeleton, structure
from modicum.report.words import filled
from modicum.types import Frozen
from modicum.updates.base import Prepared, Update
from modicum.updates.layout import layout
from modicum.updates.products import backward_share

GRADIENT_BYTES = 4  # of a trained number


class Preview(Frozen):
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
        return filled("preview.txt", **vars(self))


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
    kept = sum(moments.values()) if schedule.policy == "keep" else round(average(moments))
    sets = ({name: trained[name] for name in chosen} for chosen in typical)
    shares = (backward_share(prepared, tensors, num_layers) for tensors in sets)
    return Preview(
        update=str(update),
        model=model,
        tensors=len(trained),
        parameters=round(average(sizes)),
        ever=sum(sizes.values()),
        total_parameters=total,
        share=average(sizes) / total,
        gradient_bytes=round(GRADIENT_BYTES * (average(sizes) + one)),
        optimizer_bytes=kept,
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
