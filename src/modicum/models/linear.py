"""What is otherwise while a context lasts: forwards of linear layers, of LoRA on them, in fp32.

Of a few rows on a CPU the weight is the left factor, y^T = W x^T, as the matrix library splits W among
its blocks and not the few rows. LoRA is one fused `addmm` on top of W x. In fp32 each low-precision
weight is made so as its layer begins, and given up as it ends."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modicum.models.configs import KNOWN
from modicum.models.load import inner

# Linear layers by class that give more than one product: a choice of experts, products of groups.
OTHER = ("Router", "GroupedLinear")
MAX_ROWS = 128  # beyond, the usual order is as fast


def weight_first(layer: nn.Linear, x: Tensor) -> Tensor:
    """What `layer(x)` gives, to rounding; x is [..., in], the result [..., out]."""
    out = (layer.weight @ x.flatten(0, -2).mT).mT
    if layer.bias is not None:
        out = out + layer.bias
    return out.unflatten(0, x.shape[:-1])


def adapted(layer: Any, x: Tensor) -> Tensor:
    """What PEFT's LoRA `layer(x)` gives, to rounding; anything but plain LoRA is left to it."""
    weights = [layer.base_layer.weight, *(m.weight for m in layer.lora_A.values())]
    if not is_plain(layer) or any(weight.dtype != x.dtype for weight in weights):
        return type(layer).forward(layer, x)
    out = layer.base_layer(x)
    if layer.disable_adapters:
        return out
    (name,) = layer.active_adapters
    up, scale = layer.lora_B[name].weight, layer.scaling[name]
    low = x.flatten(0, -2) @ layer.lora_A[name].weight.mT
    flat = out.flatten(0, -2)
    if flat.stride(0) == 1:  # weight first
        flat = torch.addmm(flat.mT, up, low.mT, alpha=scale).mT
    else:
        flat = torch.addmm(flat, low, up.mT, alpha=scale)
    return flat.unflatten(0, x.shape[:-1])


def is_plain(layer: Any) -> bool:
    """Whether a layer has plain LoRA, and nothing else."""
    if layer.merged or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    lora = name in layer.lora_A and name not in layer.lora_variant
    return lora and isinstance(layer.lora_dropout[name], nn.Identity)


def is_matrix(module: nn.Module) -> bool:
    """Whether a layer multiplies by a matrix: a linear one, or GPT-2's Conv1D."""
    other = type(module).__name__.endswith(OTHER)
    return (isinstance(module, nn.Linear) and not other) or _is_turned(module)


def matrix(layer: Any) -> Tensor:
    """The weight [out, in] of such a layer; a view, as Conv1D keeps it the other way round."""
    return layer.weight.T if _is_turned(layer) else layer.weight


def _is_turned(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # torch's own is Conv1d


def linear_layers(*modules: nn.Module) -> list[nn.Linear]:
    """All plain linear layers in the modules; subclasses have a forward of their own."""
    return [m for module in modules for m in module.modules() if type(m) is nn.Linear]


def adapted_layers(*modules: nn.Module) -> list[Any]:
    """All of PEFT's LoRA layers in the modules that are around a linear layer."""
    from peft.tuners.lora import Linear

    return [m for module in modules for m in module.modules() if type(m) is Linear]


@contextmanager
def replaced(forward: Callable[..., Tensor], layers: Sequence[nn.Module]) -> Iterator[None]:
    """Run the layers by `forward(layer, x)` while this lasts."""
    try:
        for layer in layers:
            # Past nn.Module's own bookkeeping of attributes.
            layer.__dict__["forward"] = partial(forward, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


@contextmanager
def meanwhile(*owners: Any, **values: Any) -> Iterator[None]:
    """Some objects have other values of their attributes while this lasts."""
    before = [(owner, name, getattr(owner, name)) for owner in owners for name in values]
    try:
        for owner, name, _ in before:
            setattr(owner, name, values[name])
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def few_rows(layers: Sequence[nn.Linear], rows: int) -> AbstractContextManager[None]:
    """Run the layers weight first while this lasts, if they are on a CPU and rows are few."""
    if rows > MAX_ROWS or not layers or layers[0].weight.device.type != "cpu":
        return nullcontext()
    return replaced(weight_first, layers)


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """The model computes in fp32 with its own weights; no gradients in here."""
    if all(p.dtype == torch.float32 for p in model.parameters()):
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
    if base.config.model_type in KNOWN["asking"]:
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
    return list({id(t): t for m in module.modules() for t in _own(m)}.values())
