"""Layers that carry a state along the sequence (Qwen3.5, Qwen3-Next), over packed tokens.

Such a layer reads its tokens in order into the last inputs of a short convolution and the table
of the gated delta rule. A prompt is read once, and every row goes on from what it left,
gradients included. The layer stays the library's own, with `States` in its cache's place.
Prompts are filled up on the left with zeros, of which the layer makes no key and no value (the
library masks its padding so); rows on the right, which only what is dropped sees.

Shapes: B row, T token of a row, H hidden, C channel of the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class States:
    """In the place of the library's cache, for one call of one layer; nothing is in place."""

    def __init__(self, before: tuple[Tensor, Tensor] | None = None) -> None:
        self.convolution, self.table = before or (None, None)

    @property
    def after(self) -> tuple[Tensor, Tensor]:
        """What the layer has left: the convolution's last inputs and the table, a row each."""
        assert self.convolution is not None and self.table is not None
        return self.convolution, self.table

    def get_conv_state(self, *_: Any, **__: Any) -> Tensor | None:
        """The convolution's last inputs [B, C, kernel]; None at the beginning."""
        return self.convolution

    def get_recurrent_state(self, *_: Any, **__: Any) -> Tensor | None:
        """The table; None at the beginning."""
        return self.table

    def is_recording_past(self, _: int) -> bool:
        """Always: the layer then changes nothing in place that a gradient may need."""
        return True

    def update_conv_state(self, new_BCT: Tensor, _: int, conv_kernel_size: int) -> Tensor:
        """The last inputs and the new ones; zeros stand before the beginning."""
        before = self.convolution
        if before is None:
            before = new_BCT.new_zeros(*new_BCT.shape[:2], conv_kernel_size)
        whole = torch.cat([before, new_BCT], -1)
        self.convolution = whole[..., -conv_kernel_size:]
        return whole

    def update_recurrent_state(self, table: Tensor, _: int) -> None:
        """Keep the table."""
        self.table = table


def mix(module: Any, hidden_states: Tensor, attention_mask: Any = None, **_: Any) -> Tensor:
    """What `module(hidden_states)` gives; the plan in the mask's place knows what follows what."""
    return attention_mask.mix(module, hidden_states[0])[None]


def read(module: Any, x_BTH: Tensor, states: States) -> Tensor:
    """The layer's own forward of rows that go on from `states`."""
    return type(module).forward(module, hidden_states=x_BTH, cache=states)
