"""How much of what the masters learnt has arrived in the model, whose weights are coarser.

With the changes p of the weights and m of the masters since the start

    arrived = sum(p m) / sum(m m)

over a fixed sample of entries of what has an fp32 master now: 1 when all of it is there (on
average, under stochastic rounding), 0 when all steps were rounded away. The start is the
base; for a vector of entries it is where these began.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from modicum.models.precision import Master, SparseMaster, is_coarse

SAMPLE = 4096  # entries of a tensor


class Arrival:
    """Remembers what a sample of `trainable` was; make it from the base."""

    def __init__(self, trainable: Mapping[str, nn.Parameter]) -> None:
        self.coarse = {name: p for name, p in trainable.items() if is_coarse(p)}
        self.samples: dict[tuple[str, int], Tensor] = {}
        self.start = {name: self._seen(name, p) for name, p in self.coarse.items()}

    def _seen(self, name: str, tensor: Tensor) -> Tensor:
        """The sampled entries of a tensor, in fp32."""
        flat = tensor.detach().reshape(-1)
        key = (name, len(flat))
        if key not in self.samples:
            self.samples[key] = torch.from_numpy(sample(*key)).to(self.coarse[name].device)
        return flat[self.samples[key].to(flat.device)].float().to(self.coarse[name].device)

    def share(self, held: Mapping[str, Master], parked: Mapping[str, Tensor]) -> float | None:
        """The share that has arrived; None where nothing is rounded or has moved.

        `parked` has the values of masters that are elsewhere.
        """
        sums = []
        for name, parameter in self.coarse.items():
            master = held.get(name)
            if isinstance(master, SparseMaster):
                learnt = self._seen(name, master.tensor)
                shown = self._seen(name, master.seen(parameter.detach()).float() - master.origin)
            elif master is not None or name in parked:
                values = parked[name] if master is None else master.tensor
                learnt = self._seen(name, values) - self.start[name]
                shown = self._seen(name, parameter) - self.start[name]
            else:
                continue
            sums.append(torch.stack([(shown * learnt).sum(), learnt.square().sum()]).double())
        along, whole = torch.stack(sums).sum(0).tolist() if sums else (0.0, 0.0)
        return along / whole if whole else None


def sample(name: str, size: int) -> np.ndarray:
    """Flat indices of at most SAMPLE entries of a tensor of `size`, drawn by its name."""
    if size <= SAMPLE:
        return np.arange(size)
    return np.unique(np.random.default_rng(crc32(name.encode())).integers(0, size, SAMPLE))
