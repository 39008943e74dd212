"""torch's attention of sequences of any lengths laid end to end, where a GPU has it.

A causal mask is aligned to the end where there are more keys than queries, so a row whose keys are its
prompt's and its own looks at all of its prompt. The padded way (`attention.weigh`) is the reference.

Shapes: N tokens laid end to end, M keys, one list a sequence after the other, S sequence and one more."""

import inspect
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from modicum.models.device import LOW, up

OLDEST, LARGEST_HEAD = (8, 0), 256  # compute capability, and size of a head, of its kernel
Keys = tuple[tuple[Tensor, ...], tuple[int, int]]
"""Which tokens sequences look at [M], where each begins among queries and among these [S]; the longest."""


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
    pairs = zip(of, seen[len(prompts) :], strict=True)
    seen = [*seen[: len(prompts)], *(seen[p] + own for p, own in pairs)]
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
