"""torch's attention of sequences of any lengths laid end to end, where a GPU has it.

A causal mask is aligned to the end where there are more keys than queries, so a row whose keys are its
prompt's and its own looks at all of its prompt. The padded way (`attention.weigh`) is the reference.

Shapes: N tokens laid end to end, M keys, one list a sequence after the other, S sequence and one more.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from modicum.models.device import LOW, up

OLDEST = (8, 0)  # the compute capability from which its kernel is there
LARGEST_HEAD = 256


@cache
def varlen() -> Any:
    """torch's function, or None in one that is too old."""
    try:
        from torch.nn.attention.varlen import varlen_attn as found
    except ImportError:
        return None
    return found if "window_size" in inspect.signature(found).parameters else None


@cache
def takes_groups() -> bool:
    """Whether heads of keys need not be repeated (not in torch 2.11)."""
    return "enable_gqa" in inspect.signature(varlen()).parameters


def fits(device: torch.device, dtype: torch.dtype, head: int, softcap: float | None) -> bool:
    """Whether there is such a kernel for heads of this size, scores with or without a cap."""
    right = device.type == "cuda" and dtype in LOW and softcap is None
    fits_kernel = head % 8 == 0 and head <= LARGEST_HEAD and varlen() is not None
    return right and fits_kernel and torch.cuda.get_device_capability(device) >= OLDEST


@dataclass(frozen=True)
class Keys:
    """Which tokens each sequence looks at, and where in the lists a sequence begins."""

    token_M: Tensor
    queries_S: Tensor
    keys_S: Tensor
    longest: tuple[int, int]

    @classmethod
    def of(
        cls,
        prompt_lengths: Sequence[int],
        row_prompts: Sequence[int],
        row_lengths: Sequence[int],
        device: torch.device,
    ) -> Self:
        """Those of prompts, and of rows that go on from them."""
        lengths = [*prompt_lengths, *row_lengths]
        starts = [0, *accumulate(lengths)]
        at = [range(start, start + n) for start, n in zip(starts, lengths, strict=False)]
        prompts, rows = at[: len(prompt_lengths)], at[len(prompt_lengths) :]
        seen = [[*of] for of in prompts]
        seen += [[*prompts[p], *row] for p, row in zip(row_prompts, rows, strict=True)]
        ends = [0, *accumulate(map(len, seen))]
        token_M = torch.tensor([token for of in seen for token in of])
        ends_S = (torch.tensor(of, dtype=torch.int32) for of in (starts, ends))
        token_M, queries_S, keys_S = up(device, token_M, *ends_S)
        return cls(token_M, queries_S, keys_S, (max(lengths), max(map(len, seen))))


def attend(
    keys: Keys, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scaling: float, window: int | None
) -> Tensor:
    """Attention [N, H, D] of every sequence to its keys, backwards, as far back as a window."""
    k_MKD, v_MKD = (x.index_select(0, keys.token_M) for x in (k_NKD, v_NKD))
    more: dict[str, Any] = {"enable_gqa": True}
    if not takes_groups():
        times, more = q_NHD.shape[1] // k_NKD.shape[1], {}
        k_MKD, v_MKD = (x.repeat_interleave(times, 1) for x in (k_MKD, v_MKD))
    back = -1 if window is None else window - 1
    return varlen()(  # type: ignore[no-any-return]
        *(q_NHD, k_MKD, v_MKD, keys.queries_S, keys.keys_S, *keys.longest),
        **{"window_size": (back, 0), "scale": scaling, **more},
    )
