"""SHiRA (Bhardwaj et al. 2024, arXiv 2406.13175): some entries of every weight train.

The change of a weight is sparse, zero at first, and of no low rank: rank x (in + out)
entries, as many as a LoRA of that rank has. PEFT does the work. Which entries is drawn
from the run's seed, for every layer anew; PEFT would draw the same for all layers of one
shape. Departures from PEFT's defaults: all linear layers, rank 8.

It is an adapter: the base is not touched, but every forward copies the whole weight to add
the entries, and backward makes the gradient of the whole weight. `sparse(by='random')`
trains entries of the weight itself. With a bf16 base the sum is rounded to bf16.
`rate_scale` 5 is from the tiny base, found as in `vectors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from modicum.types import UserError
from modicum.updates.adapter import Adapter, at_least_one
from modicum.updates.chains import ADAPTER, Chain, Link, Trains


@dataclass(frozen=True)
class Shira(Adapter):
    """Entries drawn at random train, in every linear layer as many as a LoRA would have."""

    name: ClassVar[str] = "shira"
    peft_config: ClassVar[str] = "ShiraConfig"
    turned: ClassVar[bool] = False
    rate_scale: ClassVar[float] = 5.0
    examples: ClassVar[tuple[str, ...]] = ("shira(rank=2)", "shira(rank=1) @ last(2)")
    rank: int = 8

    def __post_init__(self) -> None:
        at_least_one(self, rank=self.rank)

    def check(self, name: str, layer: Any) -> None:
        """A layer must have as many entries as are to train."""
        out, size = layer.weight.shape
        if self.rank * (out + size) > out * size:
            raise UserError(
                f"{self}: {name} has {out * size} entries, fewer than rank x ({out} + {size});"
                f" rank is at most {out * size // (out + size)} there"
            )

    def settings(self, targets: list[str], seed: int) -> dict[str, Any]:
        """As many entries as a LoRA has numbers."""
        return {"r": self.rank}

    def config(self, targets: list[str], seed: int) -> Any:
        """PEFT's, with our mask."""
        config = super().config(targets, seed)
        config.mask_fn = drawn(seed)
        return config

    def finish(self, model: Any) -> None:
        """Make the indices buffers too, which the change proof watches."""
        # As they are; said out loud, as torch warns of the silent default.
        torch.sparse.check_sparse_tensor_invariants.disable()
        for layer in model.modules():
            for indices in getattr(layer, "shira_indices", {}).values():
                layer.register_buffer("trained_entries", indices, persistent=False)

    def chain(self, layer: Any, trains: Trains) -> Chain:
        """No matrix of its own, but the gradient of the whole weight."""
        return Chain((Link(0, trains(layer.shira_weight[ADAPTER])),), whole=True)

    def without_data(self, model: nn.Module) -> None:
        """Let layers add a table without memory, as sparse tensors need data.

        Where the entries lie (16 bytes a number) is left out.
        """
        for layer in model.modules():
            if hasattr(layer, "shira_weight"):
                layer.get_delta_weight = partial(_expanded, layer)  # type: ignore[assignment]


def _expanded(layer: Any, adapter: str) -> Tensor:
    """A table of the weight's shape through which the adapter's numbers get a gradient."""
    total = (layer.shira_weight[adapter] * layer.scaling[adapter]).sum()
    return total.expand(layer.out_features, layer.in_features)


def drawn(seed: int) -> Callable[..., Tensor | None]:
    """PEFT's mask function: 1 at entries drawn from the seed, for one layer after the other."""
    number = 0

    def mask(layer: nn.Linear, rank: int, **_: Any) -> Tensor | None:
        nonlocal number
        rng = np.random.default_rng([seed, number])
        number += 1
        if layer.weight.is_meta:  # a preview needs no entries
            return None
        count = rank * (layer.in_features + layer.out_features)
        where = rng.choice(layer.weight.numel(), count, replace=False, shuffle=False)
        flat = torch.zeros(layer.weight.numel())
        flat[torch.from_numpy(where)] = 1.0
        return flat.view(layer.weight.shape).to(layer.weight.device)

    return mask
