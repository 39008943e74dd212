"""What is done otherwise where the model is not on a CPU (docs/engine.md, "On a GPU").

Each is asked for, or chosen, by device; on a CPU all is as if this module were not there.

Shapes: N tokens laid end to end, H hidden or query head, V vocabulary, M keys, one list a sequence after
the other, S sequence and one more, K key/value head, D size of a head.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

ALIGNED = 16  # bytes, for a view of any dtype
LOW = (torch.bfloat16, torch.float16)
OLDEST, LARGEST_HEAD = (8, 0), 256  # compute capability, and size of a head, of its kernel
Keys = tuple[tuple[Tensor, ...], tuple[int, int]]
"""Which tokens sequences look at [M], where each begins among queries and among these [S]; the longest."""


def up(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of the CPU on `device`: there by one copy, for which the host does not wait."""
    if device.type == "cpu":
        return tensors
    sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
    whole = torch.zeros(sum(sizes), dtype=torch.uint8)
    for part, tensor in zip(whole.split(sizes), tensors, strict=True):
        part[: tensor.nbytes].view(tensor.dtype).copy_(tensor.reshape(-1))
    parts = whole.pin_memory().to(device, non_blocking=True).split(sizes)
    return tuple(
        part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for part, tensor in zip(parts, tensors, strict=True)
    )


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


# Attention of sequences of any lengths laid end to end (`varlen_attn`), where torch and the GPU have it.
# A causal mask is aligned to the end where there are more keys than queries, so a row whose keys are its
# prompt's and its own looks at all of its prompt. The padded way (`attention.weigh`) is the reference.


@cache
def varlen() -> Any:
    """torch's function, or None in one that is too old."""
    try:
        from torch.nn.attention.varlen import varlen_attn as found
    except ImportError:
        return None
    return found if "window_size" in inspect.signature(found).parameters else None


def fits(device: torch.device, dtype: torch.dtype, head: int, softcap: float | None) -> bool:
    """Whether there is such a kernel for heads of this size, scores with or without a cap."""
    there = device.type == "cuda" and suits(dtype, head, softcap) and varlen() is not None
    return there and torch.cuda.get_device_capability(device) >= OLDEST


def suits(dtype: torch.dtype, head: int, softcap: float | None) -> bool:
    """Whether its kernel is for such heads."""
    return dtype in LOW and softcap is None and head % 8 == 0 and head <= LARGEST_HEAD


def keys_of(prompts: Sequence[int], of: Sequence[int], rows: Sequence[int], device: Any) -> Keys:
    """Those of prompts of such lengths, and of rows that each go on from one `of` them."""
    starts = [0, *accumulate([*prompts, *rows])]
    seen = [[*range(a, a + n)] for a, n in zip(starts, [*prompts, *rows], strict=False)]
    seen = seen[: len(prompts)] + [
        seen[p] + own for p, own in zip(of, seen[len(prompts) :], strict=True)
    ]
    ends = [0, *accumulate(map(len, seen))]
    token_M = torch.tensor([token for tokens in seen for token in tokens])
    queries_S, keys_S = (torch.tensor(at, dtype=torch.int32) for at in (starts, ends))
    longest = max(*prompts, *rows, 0), max(map(len, seen))
    return up(device, token_M, queries_S, keys_S), longest


def attend(
    keys: Keys, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scaling: float, window: int | None
) -> Tensor:
    """Attention [N, H, D] of every sequence to its keys, backwards, as far back as a window."""
    (token_M, *starts), longest = keys
    k_MKD, v_MKD = (x.index_select(0, token_M) for x in (k_NKD, v_NKD))
    more: dict[str, Any] = {"enable_gqa": True}
    if "enable_gqa" not in inspect.signature(varlen()).parameters:  # torch 2.11
        times, more = q_NHD.shape[1] // k_NKD.shape[1], {}
        k_MKD, v_MKD = (x.repeat_interleave(times, 1) for x in (k_MKD, v_MKD))
    more |= {"window_size": (-1 if window is None else window - 1, 0), "scale": scaling}
    return varlen()(q_NHD, k_MKD, v_MKD, *starts, *longest, **more)  # type: ignore[no-any-return]
