"""Linear layers whose weights rest in 4 bits: NF4 of QLoRA (arXiv 2305.14314), packed by bitsandbytes.

    W = code[i] s      i: 4 bits a number; s: the largest |W| of a block of 64, in fp32, or of `double`
                       less their mean in 8 bits, of which 256 share one fp32 number

A layer unpacks W in the run's dtype for every product and keeps none. Hashes, proofs and exports read
`numbers`, never the packed bytes. bitsandbytes' own layer packs these another way on some CPUs, after which
nothing unpacks them (docs/memory.md): only its tensors are used. Meta tensors are sizes alone, without it."""

import logging
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from modicum.types import UserError

BLOCK, NESTED = 64, 256  # numbers that share a scale, scales that share one
DOUBLE = "nf4_double"  # the setting under which scales are in 8 bits
# PEFT imports it too, and on some CPUs it then tells of kernels that are not there, nor used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def library() -> Any:
    """bitsandbytes; UserError where it is not installed."""
    try:
        import bitsandbytes
    except ImportError:
        raise UserError("quantise needs bitsandbytes: pip install 'modicum[nf4]'") from None
    return bitsandbytes


def numbers(tensor: Tensor) -> Tensor:
    """What a layer multiplies by, in the dtype that its weight had; any other tensor is itself."""
    state: Any = getattr(tensor, "quant_state", None)
    if state is None:
        return tensor
    if tensor.is_meta:
        return torch.empty(state.shape, dtype=state.dtype, device=tensor.device)
    return library().functional.dequantize_4bit(tensor.data, state)


def count(tensor: Tensor) -> int:
    """How many numbers a tensor stands for."""
    return getattr(tensor, "quant_state", tensor).shape.numel()  # type: ignore[no-any-return]


def packed_bytes(size: int, double: bool) -> int:
    """Bytes of so many numbers with their scales: 4.5 bits each, or 4.127."""
    blocks = -(-size // BLOCK)
    return -(-size // 2) + (blocks + 4 * -(-blocks // NESTED) + 4 if double else 4 * blocks)


class UnpackedProduct(torch.autograd.Function):
    """x W^T + b of a table x, of which only x and b can have a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, numbers(weight).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, None, Tensor | None]:
        (slope,), (to_x, _, to_bias) = grad_outputs, ctx.needs_input_grad
        down = slope @ numbers(ctx.weight).to(slope.dtype) if to_x else None
        return down, None, slope.sum(0) if to_bias else None


class FourBit(nn.Linear):
    """A linear layer whose weight rests in 4 bits; its bias, which may train, does not."""

    def __init__(self, layer: Any, double: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_parameter("bias", layer.bias)
        weight = layer.weight.detach()
        if weight.is_meta:
            codes = weight.new_empty(packed_bytes(weight.numel(), double), 1, dtype=torch.uint8)
            self.weight = nn.Parameter(codes, requires_grad=False)
            self.weight.quant_state = SimpleNamespace(shape=weight.shape, dtype=weight.dtype)  # type: ignore[attr-defined]
        else:
            how = {"requires_grad": False, "compress_statistics": double, "quant_type": "nf4"}
            self.weight = library().nn.Params4bit(weight, **how).to(weight.device)

    def forward(self, input: Tensor) -> Tensor:
        """The product with the unpacked weight; `input` is [..., in]."""
        out: Tensor = UnpackedProduct.apply(input.flatten(0, -2), self.weight, self.bias)
        return out.unflatten(0, input.shape[:-1])  # out here, or nothing could be added in place


def plain(name: str) -> str:
    """The name of a module in the model without an adapter."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def put(model: nn.Module, names: Collection[str], how: str) -> str:
    """Pack the linear layers of these plain names; what a user should know of it."""
    there = [n for n, m in model.named_modules() if type(m) is nn.Linear and plain(n) in names]
    assert len(there) == len(names), f"not all of {len(names)} layers are there to be packed"
    for name in there:  # each is given up as it is packed
        model.set_submodule(name, FourBit(model.get_submodule(name), how == DOUBLE))
    return f"{len(there)} linear layers rest in 4 bits ({how}): so rounded, they are the run's base"


def packed(model: nn.Module) -> list[str]:
    """The names of the layers that rest in 4 bits."""
    return [name for name, layer in model.named_modules() if isinstance(layer, FourBit)]


@torch.no_grad()
def unpack(model: nn.Module) -> None:
    """Put ordinary layers with the same numbers in the place of all that rest in 4 bits."""
    for name in packed(model):
        layer: Any = model.get_submodule(name)
        made = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta").eval()
        made.weight, made.bias = nn.Parameter(numbers(layer.weight), False), layer.bias
        model.set_submodule(name, made)
