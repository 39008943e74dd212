"""The engine: sampling completions and computing their log-probs.

`make` chooses how a model is run: in stretches of layers (`split`), or whole (`library`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from modicum.engine.base import Engine, Trunk
from modicum.engine.library import LibraryEngine
from modicum.engine.split import SplitEngine
from modicum.models.decoder import view
from modicum.types import UserError

Kind = Literal["auto", "split", "library"]

__all__ = ["Engine", "Kind", "LibraryEngine", "SplitEngine", "Trunk", "make"]


def make(
    model: Any,
    device: torch.device,
    lowest: int = -1,
    kind: Kind = "auto",
    recompute: bool = False,
) -> Engine:
    """The engine of a model whose lowest trained layer is `lowest` (-1: the embedding).

    `auto` splits the forward where the family is known. `recompute` is gradient
    checkpointing. Raises UserError for what an architecture cannot do.
    """
    decoder = None if kind == "library" else view(model)
    if decoder is not None:
        return SplitEngine(decoder, lowest, recompute)
    if kind == "split":
        name = model.config.model_type
        raise UserError(f"engine split: the architecture {name!r} is not one that it knows")
    if recompute:
        raise UserError("gradient checkpointing needs engine split, which this model cannot use")
    return LibraryEngine(model, device)
