"""Training an adapter further that was there before: the same A and B go on, as they are.

The model is then an adapter on its base (`models.adapters`). Its rank and where it goes are the
adapter's, and the update must say the same: `lora(rank=16, alpha=32)`, with `@` only if that
names just these layers. The reference is the adapter as it was. What would train below it, or
put another one on top, is refused: made one model of both, it can be trained in every way.
"""

from __future__ import annotations

from typing import Any

from modicum.types import UserError
from modicum.updates.base import Selection
from modicum.updates.chains import ADAPTER
from modicum.updates.layout import MERGE
from modicum.updates.targets import linear_layers

# What an adapter may have beside A and B, which training on knows nothing of.
BESIDE = (
    *("modules_to_save", "trainable_token_indices", "rank_pattern", "alpha_pattern"),
    *("lora_bias", "layer_replication", "use_qalora", "use_bdlora", "lora_ga_config"),
)
GOES_ON = ("lora", "rslora", "loraplus", "lorafa", "dora")  # whose start is A and B alone
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")


def check(update: Any, settings: dict[str, Any], model: Any, where: Selection | None) -> None:
    """UserError unless an update of the LoRA kind, with these settings, is the adapter's."""
    held, merge = model.peft_config[ADAPTER], f"the way round: {MERGE}"
    if (kind := held.peft_type.value) != "LORA":
        raise UserError(f"{update}: the model is a {kind} adapter, which cannot go on; {merge}")
    beside = [name for name in BESIDE if getattr(held, name, None)]
    beside += ["bias"] if held.bias != "none" else []
    beside += ["use_rslora and use_dora"] if held.use_rslora and held.use_dora else []
    if held.init_lora_weights not in PLAIN_STARTS:
        beside += [f"init_lora_weights = {held.init_lora_weights!r}"]
    if beside:
        raise UserError(
            f"{update}: the adapter has {beside[0]}, with which it cannot go on; {merge}"
        )
    asked = {"use_rslora": False, "use_dora": False, **settings}
    same = all(getattr(held, name, None) == asked[name] for name in asked)
    experts = getattr(update, "experts", False) == bool(held.target_parameters)
    if not (update.name in GOES_ON and same and experts):
        raise UserError(f"{update} is not the adapter of the model, which is {said(held)}; {merge}")
    base = model.get_base_model()
    wanted = {n for n in linear_layers(base, where) if ".lora_" not in n} if where else set()
    odd = wanted ^ {n for n, _ in base.named_modules() if n.endswith(".base_layer")}
    if where and odd:
        raise UserError(
            f"{update} @ {where}: the adapter of the model lies elsewhere (first difference:"
            f" {min(odd).removesuffix('.base_layer')}); leave @ out, it stays where it is"
        )


def said(held: Any) -> str:
    """The update that an adapter of PEFT's LoRA kind is."""
    name = "dora" if held.use_dora else "rslora" if held.use_rslora else "lora"
    experts = ", experts=True" if held.target_parameters else ""
    return f"{name}(rank={held.r}, alpha={held.lora_alpha}{experts})"
