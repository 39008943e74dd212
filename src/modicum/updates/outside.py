"""What the driver needs of a model and an optimizer that are not the package's own.

`InPlace` stands in for fp32 masters; it trains some entries of a tensor by an optimizer that
moves the whole of it.
`free_the_bottom` lets backward stop at the lowest layer that trains: gradient
checkpointing asks for the gradient of the inputs, and then every frozen layer below has
one too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modicum.models.precision import Dense, Masters, Sparse
from modicum.types import UserError

HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")  # of transformers, of PEFT


class Whole(Dense):
    """All entries train, where they are, in whatever dtype."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = self.tensor = self.leaf = parameter


class Within(Sparse):
    """Some entries train of a tensor that the optimizer moves as a whole.

    A schedule is shown the same as in the package's own loop: the vector of the entries'
    differences from the start, and its gradient.
    """

    def __init__(self, parameter: nn.Parameter, entries: Tensor) -> None:
        super().__init__(parameter, entries)
        self.release()  # no hook: a Trainer clips, unscales and averages whole gradients
        self.leaf = parameter
        self.before: Tensor | None = None
        """The whole values before the step."""

    def collect(self) -> None:
        """The gradient of the tensor becomes that of the entries."""
        self.tensor.grad = None
        super().collect()

    def spread(self) -> None:
        """The gradient of the entries becomes that of the tensor, whose values are kept."""
        if self.tensor.grad is not None:
            flat = torch.zeros_like(self.parameter).flatten()
            flat[self.entries] = self.tensor.grad.to(flat.dtype)
            self.parameter.grad = flat.view_as(self.parameter)
            self.before = self.parameter.detach().clone()

    def put_back(self) -> None:
        """After the step: its difference from the start in the entries, and nothing else."""
        if self.before is not None:
            self.tensor.copy_(self.parameter.flatten()[self.entries].float() - self.origin)
            self.parameter.copy_(self.before)
            self.before = None


class InPlace(Masters):
    """The model's own tensors, for an optimizer that holds them."""

    def add(self, name: str, parameter: nn.Parameter, entries: Tensor | None = None) -> None:
        """Count what one more parameter, or some of its entries, do from now on."""
        self.held[name] = Whole(parameter) if entries is None else Within(parameter, entries)

    @property
    def within(self) -> list[Within]:
        """Those of which some entries train."""
        return [master for master in self.held.values() if isinstance(master, Within)]


def _nothing() -> None:
    """Stands in for `enable_input_require_grads` while a driver is at work."""


def free_the_bottom(model: nn.Module) -> None:
    """No gradient of the inputs, now or when checkpointing is switched on again.

    Switched on by transformers it hooks the embedding, TRL does so once more for PEFT and
    after every generation. UserError for the reentrant kind, which needs that gradient.
    """
    for module in model.modules():
        run = getattr(module, "_gradient_checkpointing_func", None)
        options = getattr(run, "keywords", {})
        if getattr(module, "gradient_checkpointing", False) and options.get("use_reentrant", True):
            raise UserError(
                "reentrant gradient checkpointing needs gradients through the frozen layers; give"
                " gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        if hasattr(type(module), "enable_input_require_grads"):
            module.disable_input_require_grads()  # type: ignore[operator]
            module.__dict__["enable_input_require_grads"] = _nothing
        # A second hook is forgotten by the first's owner, and stays.
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") in HOOKS:
                del module._forward_hooks[key]


def give_back(model: nn.Module) -> None:
    """Undo what `free_the_bottom` left in the way of later training."""
    for module in model.modules():
        module.__dict__.pop("enable_input_require_grads", None)
