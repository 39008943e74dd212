"""One view of Hugging Face decoders: embed, layers start..stop, final norm, head.

The layers are the library's own modules, adapters included; only what lies between them
is ours: tokens come packed (`attention.Packed`) or one a row (`cache.Cache`), and a
forward can stop and go on at any layer. A family is in FAMILIES when a test shows that
this equals the library's forward, gradients included.

Shapes: N tokens laid end to end, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modicum.models.attention import NAME, Plan
from modicum.models.linear import adapted, adapted_layers, few_rows, linear_layers, replaced
from modicum.models.load import inner

FAMILIES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"),
    *("smollm3", "olmo2", "phi3"),
)


class Decoder:
    """The parts of a causal language model, to be run one stretch of layers at a time."""

    def __init__(self, model: Any) -> None:
        base = inner(model)
        self.config = base.config
        self.decoder = base.get_decoder()
        self.head = base.get_output_embeddings()
        self.layers = list(self.decoder.layers)[: self.config.num_hidden_layers]
        self.linears = linear_layers(*self.layers, self.head)
        self.adapted = adapted_layers(*self.layers)
        self.softcap = getattr(self.config, "final_logit_softcapping", None)

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def embed(self, ids_N: Tensor) -> Tensor:
        """The hidden states [N, H] below the first layer."""
        return self.decoder.embed_tokens(ids_N)

    def run(
        self,
        hidden_NH: Tensor,
        positions_N: Tensor,
        plan: Plan,
        start: int = 0,
        stop: int | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """The hidden states [N, H] after layers start .. stop - 1.

        `recompute` keeps only what enters each layer for backward (gradient
        checkpointing); backward then runs the layer's forward again.
        """
        hidden = hidden_NH[None]
        layers = range(start, self.num_layers if stop is None else stop)
        rotations = self._rotations(hidden, positions_N[None], layers)
        again = recompute and torch.is_grad_enabled()
        with self._ours():
            for index in layers:
                given = {
                    "attention_mask": plan,
                    "position_ids": positions_N[None],
                    "position_embeddings": rotations[self._kind(index)],
                }
                if again:
                    hidden = checkpoint(
                        self.layers[index],
                        hidden,
                        use_reentrant=False,
                        context_fn=lambda: (nullcontext(), self._ours()),
                        **given,
                    )
                else:
                    hidden = self.layers[index](hidden, **given)
        return hidden[0]

    def few_rows(self, rows: int) -> AbstractContextManager[None]:
        """A context in which a forward of so few rows is faster; no gradients in it."""
        return few_rows(self.linears, rows)

    def finish(self, hidden_NH: Tensor) -> Tensor:
        """The final norm."""
        return self.decoder.norm(hidden_NH)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of states after the final norm."""
        return cap(self.head(hidden_NH), self.softcap)

    def _kind(self, index: int) -> str | None:
        """The type of a layer where each type has its own rotation (Gemma 3)."""
        if self.config.model_type != "gemma3_text":
            return None
        return self.config.layer_types[index]

    def _rotations(self, hidden: Tensor, positions: Tensor, layers: range) -> dict[Any, Any]:
        rotate = self.decoder.rotary_emb
        kinds = {self._kind(index) for index in layers}
        return {
            kind: rotate(hidden, positions) if kind is None else rotate(hidden, positions, kind)
            for kind in kinds
        }

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """Our attention function in place of the model's, and our LoRA, while layers run."""
        before = self.config._attn_implementation
        self.config._attn_implementation = NAME
        try:
            with replaced(adapted, self.adapted):
                yield
        finally:
            self.config._attn_implementation = before


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """Gemma's bound on logits, where a model has one."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def view(model: Any) -> Decoder | None:
    """The decoder of a model of a supported family, else None."""
    config = inner(model).config
    if config.model_type not in FAMILIES or getattr(config, "use_bidirectional_attention", False):
        return None
    return Decoder(model)
