"""What is done otherwise where the model is not on a CPU (docs/engine.md, "On a GPU").

Each is asked for, or chosen, by device; on a CPU all is as if this module were not there.

Shapes: N token, H hidden, V vocabulary."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

ALIGNED = 16  # bytes, for a view of any dtype
LOW = (torch.bfloat16, torch.float16)


def up(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the CPU on `device`: there by one copy, for which the host does not wait."""
    if device.type == "cpu":
        return tensors
    sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
    whole = torch.zeros(sum(sizes), dtype=torch.uint8)
    for part, tensor in zip(whole.split(sizes), tensors, strict=True):
        part[: tensor.nbytes].view(tensor.dtype).copy_(tensor.reshape(-1))
    parts = whole.pin_memory().to(device, non_blocking=True).split(sizes)
    pairs = zip(parts, tensors, strict=True)
    return tuple(part[: t.nbytes].view(t.dtype).view(t.shape) for part, t in pairs)


def index(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on `device`, to take rows by."""
    return up(device, torch.tensor(numbers, dtype=torch.long))[0]


def finish() -> None:
    """Wait for what was asked of a GPU: copies to the CPU that were not waited for are there."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def repeatable(on: bool, device: torch.device) -> None:
    """Let a GPU give the same numbers again, at the cost of some time, or not."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(on)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@cache
def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of matrices of a low precision can give fp32 there."""
    if device.type != "cuda" or dtype not in LOW:
        return False
    try:
        torch.mm(*[torch.zeros(16, 16, dtype=dtype, device=device)] * 2, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True


class Widened(torch.autograd.Function):
    """x_NH W^T in fp32 of numbers of a low precision, which the gradients are made in too."""

    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, weight_VH: Tensor) -> Tensor:
        ctx.save_for_backward(x_NH, weight_VH)
        return torch.mm(x_NH, weight_VH.T, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None]:
        x_NH, weight_VH = ctx.saved_tensors
        slope_NV, (to_x, to_weight) = grad_outputs[0].to(x_NH.dtype), ctx.needs_input_grad
        return slope_NV @ weight_VH if to_x else None, slope_NV.T @ x_NH if to_weight else None


def logits(head: nn.Module, hidden_NH: Tensor) -> Tensor:
    """Logits [N, V] of a head; in fp32 where the device gives them so without rounding."""
    plain = type(head) is nn.Linear and head.bias is None and "forward" not in vars(head)
    if plain and widens(hidden_NH.device, hidden_NH.dtype):
        return Widened.apply(hidden_NH, head.weight)  # type: ignore[no-any-return]
    return head(hidden_NH)  # type: ignore[no-any-return]
