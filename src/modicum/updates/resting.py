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
        raise UserError(
            f"quantise: {update} begins with the base's weights or calculates with them, and they"
            " would rest in 4 bits; lora only adds to what they give"
        )
    linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    own = {n: m for n, m in linear.items() if not n.endswith(f".{ADAPTER}")}
    trained = {id(p) for p in prepared.trainable.values()}
    found = [n for n, m in own.items() if layer_of(n) is not None and id(m.weight) not in trained]
    if not found:
        raise UserError(
            f"quantise: {update} may train every linear layer of the model, so that none rests; fewer"
            " of them, as in last(4), or an adapter leave some"
        )
    put(model, map(plain, found), how)
