"""Which linear layers rest in a run: they never train in it, so they can be in 4 bits."""

from torch import nn

from modicum.models.decoder import view
from modicum.models.four_bit import plain, put
from modicum.types import UserError
from modicum.updates.base import Prepared, Update
from modicum.updates.layout import layer_of
from modicum.updates.products import ADAPTER


def rest(prepared: Prepared, update: Update, how: str) -> None:
    """Put the decoder's linear layers that never train under an update in 4 bits. UserError where
    there are none, an adapter reads the weights, or other code of the architecture might."""
    model = prepared.model
    if view(model) is None:
        kind = model.config.model_type  # type: ignore[union-attr]
        raise UserError(f"quantise: the architecture {kind!r} is not one that the engine knows")
    if getattr(prepared.adapter, "reads_base", False):
        why = "begins with the base's weights or calculates with them, which would rest in 4 bits"
        raise UserError(f"quantise: {update} {why}; lora only adds to what they give")
    inside = [(n, m) for n, m in model.named_modules() if layer_of(f"{n}.") is not None]
    linear = [(n, m) for n, m in inside if type(m) is nn.Linear and not n.endswith(f".{ADAPTER}")]
    trained = {id(p) for p in prepared.trainable.values()}
    found = [name for name, layer in linear if id(layer.weight) not in trained]
    if not found:
        why = "may train every linear layer of the model, so that none rests"
        raise UserError(f"quantise: {update} {why}; last(4), say, or an adapter leaves some")
    put(model, {plain(name) for name in found}, how)
