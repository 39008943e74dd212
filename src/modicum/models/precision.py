"""fp32 masters for what trains, and a warning when steps are too small to be stored.

The model computes in its own dtype. A trainable tensor that is not fp32 gets an fp32
master: gradients are summed there, the optimizer moves it, and its rounded value is
written back. Frozen tensors have neither.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Masters:
    """The fp32 tensors that the optimizer holds, by the names of what trains."""

    def __init__(self, trainable: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(trainable)
        self.tensors: dict[str, Tensor] = {
            name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
            for name, p in trainable.items()
        }

    def collect(self) -> None:
        """Add the gradients of one backward pass to the masters', in fp32."""
        for name, parameter in self.parameters.items():
            master = self.tensors[name]
            if master is parameter or parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad + gradient
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Write the masters, rounded, into the model."""
        for name, parameter in self.parameters.items():
            if self.tensors[name] is not parameter:
                parameter.copy_(self.tensors[name])

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set the masters to `values` (all of them, by name) and publish."""
        for name, master in self.tensors.items():
            master.copy_(values[name])
        self.publish()


@torch.no_grad()
def too_fine(trainable: Mapping[str, nn.Parameter], learning_rate: float) -> list[str]:
    """Names of tensors whose spacing at their own scale is above twice a step of Adam.

    A step is about `learning_rate`; a weight of size w in a dtype with precision eps has a
    spacing of about w * eps, and what is under half of it is rounded away.
    """
    found = []
    for name, parameter in trainable.items():
        scale = parameter.float().square().mean().sqrt().item()
        if learning_rate < 0.5 * scale * torch.finfo(parameter.dtype).eps:
            found.append(name)
    return found
