"""One view of Hugging Face decoders: embed, layers start..stop, final norm, head.

The layers are the library's own modules; tokens come packed (`attention.Packed`) or one a row
(`cache.Cache`). A family is in FAMILIES when a test shows that this equals the library's forward.

Shapes: N tokens laid end to end, H hidden, V vocabulary."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modicum.models import device
from modicum.models.attention import NAME, mix
from modicum.models.configs import KNOWN
from modicum.models.linear import adapted, adapted_layers, linear_layers, meanwhile, replaced
from modicum.models.load import inner

FAMILIES: dict[str, dict[str, str]] = {name: {} for name in KNOWN["plain"].split()}
FAMILIES |= KNOWN["scaled"]
"""Of each the entries of its config that scale: the embedding; logits, by times or over."""


class Decoder:
    """The parts of a causal language model, to be run one stretch of layers at a time."""

    def __init__(self, model: Any) -> None:
        base = inner(model)
        self.config = base.config.get_text_config()
        named = FAMILIES[self.config.model_type]
        self.scales = {what: getattr(self.config, name) for what, name in named.items()}
        self.decoder = base.get_decoder()
        self.head = base.get_output_embeddings()
        self.layers = list(self.decoder.layers)[: self.config.num_hidden_layers]
        self.num_layers = len(self.layers)
        self.linears = linear_layers(*self.layers, self.head)
        self.adapted = adapted_layers(*self.layers)
        # Layers that carry a state, and whether each type of layer has a rotation of its own.
        self.mixers = [layer.linear_attn for layer in self.layers if hasattr(layer, "linear_attn")]
        self.typed = "full_attention" in (getattr(self.config, "rope_parameters", None) or {})
        self.softcap = getattr(self.config, "final_logit_softcapping", None)

    @property
    def fixed(self) -> bool:
        """Whether what a step runs depends on no number of the device: which experts are chosen, or
        how long the longest row is, for a rope that goes by it."""
        ropes = getattr(self.decoder.rotary_emb, "rope_type", "")
        kinds = ropes.values() if isinstance(ropes, dict) else [ropes]
        modules = [module for layer in self.layers for module in layer.modules()]
        chosen = any(type(module).__name__.endswith("Experts") for module in modules)
        return not chosen and not any("dynamic" in kind for kind in kinds)

    def embed(self, ids_N: Tensor) -> Tensor:
        """The hidden states [N, H] below the first layer."""
        embedded_NH, scale = self.decoder.embed_tokens(ids_N), self.scales.get("embedding")
        return embedded_NH if scale is None else embedded_NH * scale

    def run(
        self,
        hidden_NH: Tensor,
        plan: Any,
        start: int = 0,
        stop: int | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """The hidden states [N, H] after layers start .. stop - 1. `plan` (`attention.Packed` or
        a cache) knows where tokens are and what may look at what; `recompute` keeps only what
        enters each layer for backward (gradient checkpointing)."""
        hidden, positions_1N = hidden_NH[None], plan.positions_N[None]
        layers = range(start, self.num_layers if stop is None else stop)
        rotate, kinds = self.decoder.rotary_emb, {self._kind(index) for index in layers}
        rotations = {k: rotate(hidden, positions_1N, *([k] if k else [])) for k in kinds}
        again = recompute and torch.is_grad_enabled()
        with self._ours():
            for index in layers:
                given: dict[str, Any] = {
                    "attention_mask": plan,
                    "position_ids": positions_1N,
                    "position_embeddings": rotations[self._kind(index)],
                    **({"shared_kv_states": {}} if self.config.model_type == "gemma4_text" else {}),
                }
                if again:
                    given["use_reentrant"] = False
                    given["context_fn"] = lambda: (nullcontext(), self._ours())
                    hidden = checkpoint(self.layers[index], hidden, **given)
                else:
                    hidden = self.layers[index](hidden, **given)
        return hidden[0]

    def finish(self, hidden_NH: Tensor) -> Tensor:
        """The final norm."""
        return self.decoder.norm(hidden_NH)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of states after the final norm."""
        logits_NV = device.logits(self.head, hidden_NH)
        if "times" in self.scales:
            logits_NV = logits_NV * self.scales["times"]
        if "over" in self.scales:
            logits_NV = logits_NV / self.scales["over"]
        if self.softcap is not None:  # Gemma's bound
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    def _kind(self, index: int) -> str | None:
        """The type of a layer where each type has its own rotation (Gemma 3)."""
        return self.config.layer_types[index] if self.typed else None

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """Our attention, LoRA and way of reading into states in the library's place meanwhile."""
        free = [layer for layer in self.adapted if "forward" not in layer.__dict__]
        attention = meanwhile(self.config, _attn_implementation=NAME)
        with attention, replaced(adapted, free), replaced(mix, self.mixers):
            yield


def view(model: Any) -> Decoder | None:
    """The decoder of a model of a supported family, else None."""
    config = inner(model).config.get_text_config()
    looks_ahead = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    # What layers of Gemma 4 hand past others is not in the states between them.
    handed = ("hidden_size_per_layer_input", "num_kv_shared_layers")
    unfit = looks_ahead or any(getattr(config, name, 0) for name in handed)
    return None if unfit or config.model_type not in FAMILIES else Decoder(model)
