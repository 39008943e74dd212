"""Training an adapter further that was there before: the same A and B go on, as they are.

The model is then an adapter on its base (`models.adapters`). Where it goes and its rank are the
adapter's, and the update must say the same: `lora(rank=16, alpha=32)`, and `@` only if it
names just these layers. The reference is the adapter as it was. What would train below an
adapter, or put another one on top, is refused: made one model of both, it can be trained in
every way.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from modicum.models.linear import is_matrix
from modicum.types import UserError
from modicum.updates.base import Selection
from modicum.updates.chains import ADAPTER
from modicum.updates.layout import MERGE

# What an adapter may have beside A and B, which training on knows nothing of.
BESIDE = (
    *("modules_to_save", "trainable_token_indices", "rank_pattern", "alpha_pattern"),
    *("lora_bias", "layer_replication", "use_qalora", "use_bdlora", "lora_ga_config"),
)
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")


def check(update: Any, settings: dict[str, Any], model: Any, where: Selection | None) -> None:
    """UserError unless an update of the LoRA kind, with these settings, is the adapter's."""
    held, merge = model.peft_config[ADAPTER], f"the way round: {MERGE}"
    kind = held.peft_type.value
    if kind != "LORA":
        raise UserError(f"{update}: the model is a {kind} adapter, which cannot go on; {merge}")
    beside = next((name for name in BESIDE if getattr(held, name, None)), None)
    if held.bias != "none":
        beside = "bias"
    if held.init_lora_weights not in PLAIN_STARTS:
        beside = f"init_lora_weights = {held.init_lora_weights!r}"
    if beside or (held.use_rslora and held.use_dora):
        beside = beside or "use_rslora with use_dora"
        raise UserError(f"{update}: the adapter has {beside}, with which it cannot go on; {merge}")
    experts = getattr(update, "experts", False)
    asked = settings.get("use_rslora", False), settings.get("use_dora", False)
    same = settings.get("r") == held.r and settings.get("lora_alpha") == held.lora_alpha
    if not (update.continues and same and asked == (held.use_rslora, held.use_dora)) or (
        experts != bool(held.target_parameters)
    ):
        raise UserError(f"{update} is not the adapter of the model, which is {said(held)}; {merge}")
    if where is not None:
        _check_place(update, model, where)


def said(held: Any) -> str:
    """The update that an adapter of PEFT's LoRA kind is."""
    name = "dora" if held.use_dora else "rslora" if held.use_rslora else "lora"
    experts = ", experts=True" if held.target_parameters else ""
    return f"{name}(rank={held.r}, alpha={held.lora_alpha}{experts})"


def _check_place(update: Any, model: Any, where: Selection) -> None:
    """UserError unless the adapter lies in just the linear layers that are selected."""
    base: nn.Module = model.get_base_model()
    chosen = {id(parameter) for parameter in where.select(base).values()}
    found, wanted = set(), set()
    for name, module in base.named_modules():
        if ".lora_" in name or not is_matrix(module):
            continue
        inside = name.endswith(".base_layer")
        found |= {name} if inside else set()
        wanted |= {name} if id(module.weight) in chosen else set()
    if found != wanted:
        odd = min(found ^ wanted).removesuffix(".base_layer")
        raise UserError(
            f"{update} @ {where}: the adapter of the model lies elsewhere (first difference:"
            f" {odd}); leave @ out, it stays where it is"
        )
