"""Run a low-precision model in fp32 for a while, a layer at a time.

The weights stay what they are; each is made fp32 as its layer begins and given up as it
ends, so that the model's rounding is left out and one layer more is all the memory it takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modicum.models.load import inner

# Whose forward makes states of the dtype of the head, before it calls that.
ASKING = ("falcon_mamba", "hy_v4", "mamba", "mamba2", "xlstm")


def is_low(model: nn.Module) -> bool:
    """Whether some of the model's numbers are not fp32."""
    return any(p.dtype != torch.float32 for p in model.parameters())


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """The model computes in fp32 with its own weights; no gradients in here."""
    if not is_low(model):
        yield
        return
    base = inner(model)
    layers = list(getattr(base.get_decoder(), "layers", ()))
    inside = {id(module) for layer in layers for module in layer.modules()}
    others = [m for m in model.modules() if id(m) not in inside and _own(m)]
    handles: list[Any] = []
    for module in [m for m in others if type(m) is nn.Embedding]:
        # The same numbers, without a copy of the whole table.
        handles.append(module.register_forward_hook(lambda _, __, out: out.float()))
        others.remove(module)
    units = [*((m, m, _all) for m in layers), *((m, m, _own) for m in others)]
    if base.config.model_type in ASKING:
        units.append((base, base.get_output_embeddings(), _own))
    for unit, whose, tensors in units:
        old: list[tuple[Tensor, Tensor]] = []

        def widen(_: Any, __: Any, old: Any = old, whose: Any = whose, of: Any = tensors) -> None:
            # A tensor may be there twice: by two names, or as one layer calls another.
            for tensor in of(whose):
                old.append((tensor, tensor.data))
                tensor.data = tensor.data.float()

        def narrow(module: nn.Module, _: Any, __: Any, old: Any = old) -> None:
            while old:
                tensor, data = old.pop()
                tensor.data = data

        handles.append(unit.register_forward_pre_hook(widen))
        handles.append(unit.register_forward_hook(narrow, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own(module: nn.Module) -> list[Tensor]:
    """The low-precision tensors that a module itself has."""
    held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [t for t in held if t.is_floating_point() and t.dtype != torch.float32]


def _all(module: nn.Module) -> list[Tensor]:
    """Those of it and of all within, each once."""
    found = [t for m in module.modules() for t in _own(m)]
    return list({id(t): t for t in found}.values())
