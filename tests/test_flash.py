"""Attention of sequences of any lengths, by a stand-in for torch's kernel, against the padded way."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modicum.models import flash
from modicum.models.attention import Packed, ScoreRule

CPU = torch.device("cpu")
PLANS = {
    "several": ([4, 2, 7], [0, 0, 2, 1], [3, 0, 5, 1]),
    "one prompt": ([5], [0, 0], [4, 4]),
    "no rows": ([3, 6], [], []),
}


def stand_in(
    q_NHD: Tensor,
    k_MKD: Tensor,
    v_MKD: Tensor,
    queries_S: Tensor,
    keys_S: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    scale: float,
    enable_gqa: bool = False,
) -> Tensor:
    """As its documentation has it: the mask is aligned to the end."""
    assert queries_S.dtype == keys_S.dtype == torch.int32
    times = q_NHD.shape[1] // k_MKD.shape[1]
    assert times == 1 or enable_gqa
    found = []
    spans = zip(pairwise(queries_S.tolist()), pairwise(keys_S.tolist()), strict=True)
    for (q0, q1), (k0, k1) in spans:
        assert q1 - q0 <= max_q and k1 - k0 <= max_k
        q, k, v = q_NHD[q0:q1], k_MKD[k0:k1], v_MKD[k0:k1]
        k, v = (x.repeat_interleave(times, 1) for x in (k, v))
        at = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
        back = at - torch.arange(k1 - k0)
        mask = back >= 0 if window_size[0] < 0 else (back >= 0) & (back <= window_size[0])
        tables = (x.transpose(0, 1) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*tables, attn_mask=mask, scale=scale)
        found.append(out.transpose(0, 1))
    return torch.cat(found)


def older(*args: Any, window_size: Any, scale: Any) -> Tensor:
    """torch 2.11's takes no heads that are shared."""
    return stand_in(*args, window_size=window_size, scale=scale)


@pytest.mark.parametrize("kernel", [stand_in, older])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("plan", list(PLANS))
def test_it_is_the_padded_way(
    monkeypatch: pytest.MonkeyPatch, plan: str, window: int | None, kernel: Any
) -> None:
    lengths = PLANS[plan]
    count = sum(lengths[0]) + sum(lengths[2])
    draw = torch.Generator().manual_seed(0)
    shapes = ((count, 4, 8), (count, 2, 8), (count, 2, 8), (count, 4, 8))
    q, k, v, slope = (torch.randn(shape, generator=draw) for shape in shapes)
    rule = ScoreRule(0.3, None, window)
    monkeypatch.setattr(flash, "varlen", lambda: kernel)
    found = []
    for fits in (False, True):
        monkeypatch.setattr(flash, "fits", lambda *_, on=fits: on)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = Packed(*lengths, CPU).attend(0, *leaves, rule)
        out.backward(slope)
        found.append([out.detach(), *(x.grad for x in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_who_can_have_it() -> None:
    cuda = torch.device("cuda")
    assert not flash.fits(CPU, torch.bfloat16, 64, None)
    assert not flash.fits(cuda, torch.float32, 64, None)
    assert not flash.fits(cuda, torch.bfloat16, 64, 50.0)  # Gemma 2's cap
    assert not flash.fits(cuda, torch.bfloat16, 60, None)
    assert not flash.fits(cuda, torch.bfloat16, 512, None)
    assert flash.varlen() is not None
