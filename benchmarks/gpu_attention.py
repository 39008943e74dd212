"""Part `attention`: the ways of attention in training, against fp32 and against each other.

Rows of 1,024 tokens go on from prompts of 256 that eight of them share, at the heads of
Qwen2.5-1.5B. Each way is a function that takes a `Case` and gives the call of its forward.

Shapes: N tokens laid end to end (prompts, then rows), M keys, one list a sequence, H query head,
K key/value head, D size of a head.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import Any

import torch
from gpu import Asked, Put
from gpu_base import apart, attempt, device_of, dtype_of, peak, seconds, wait
from gpu_smoke import varlen
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Prompts, the rows that go on from each, their lengths, and the heads."""

    prompts: int
    group: int
    prompt: int
    row: int
    heads: tuple[int, int, int]
    """H, K, D."""
    device: torch.device

    @property
    def lengths(self) -> list[int]:
        """Of all sequences."""
        return [self.prompt] * self.prompts + [self.row] * self.prompts * self.group

    @property
    def tokens(self) -> int:
        """N."""
        return sum(self.lengths)

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """Queries, keys, values and the gradient of what comes out, the same in every dtype."""
        (h, k, d), n = self.heads, self.tokens
        draw = torch.Generator(self.device).manual_seed(0)
        shapes = ((n, h, d), (n, k, d), (n, k, d), (n, h, d))
        made = [torch.randn(s, device=self.device, generator=draw) for s in shapes]
        return [x.bfloat16().to(dtype) for x in made]


def masked(case: Case) -> Forward:
    """As modicum trains on a CPU: tables, a mask, heads of keys repeated."""
    from modicum.models.attention import Packed, ScoreRule

    of = [p for p in range(case.prompts) for _ in range(case.group)]
    lengths = [case.prompt] * case.prompts, of, [case.row] * len(of)
    # With a cache, as in decoding: never by varlen.
    plan = Packed(*lengths, case.device, cache=SimpleNamespace(store=lambda *_: None))
    rule = ScoreRule(1 / math.sqrt(case.heads[2]), None, None)
    return lambda q, k, v: plan.attend(0, q, k, v, rule)


def ragged(case: Case, grouped: bool = False) -> Forward:
    """torch's `varlen_attn`: no mask; a row's keys are its prompt's and its own."""
    device, starts = case.device, [0, *accumulate(case.lengths)]
    at = [torch.arange(a, b, device=device) for a, b in pairwise(starts)]
    prompts, rows = at[: case.prompts], at[case.prompts :]
    keys = [*prompts, *(torch.cat([prompts[n // case.group], x]) for n, x in enumerate(rows))]
    key_M = torch.cat(keys)
    ends_q, ends_k = (
        torch.tensor([0, *accumulate(map(len, of))], device=device, dtype=torch.int32)
        for of in (at, keys)
    )
    longest = max(map(len, at)), max(map(len, keys))
    return lambda q, k, v: varlen(q, k[key_M], v[key_M], ends_q, ends_k, longest, grouped)


def grouped(case: Case) -> Forward:
    """The same with keys and values that are not repeated, if this torch takes them so."""
    return ragged(case, grouped=True)


def flexible(case: Case) -> Forward:
    """torch's FlexAttention, compiled where there is a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device, count = case.device, case.tokens
    number = torch.arange(len(case.lengths), device=device)
    lengths = torch.tensor(case.lengths, device=device)
    sequence_N = number.repeat_interleave(lengths)
    parent = torch.where(number < case.prompts, number, (number - case.prompts) // case.group)
    parent_N = parent.repeat_interleave(lengths)

    def may_look(b: Any, h: Any, q: Any, k: Any) -> Any:
        own = sequence_N[q] == sequence_N[k]
        return (own & (k <= q)) | (~own & (sequence_N[k] == parent_N[q]))

    mask = create_block_mask(
        may_look, None, None, count, count, device=str(device), _compile=device.type == "cuda"
    )
    run: Any = flex_attention
    if device.type == "cuda":  # eager it would hold all scores
        run = torch.compile(flex_attention, dynamic=False)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tables = (x.transpose(0, 1)[None] for x in (q, k, v))
        return run(*tables, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return forward


WAYS: dict[str, Callable[[Case], Forward]] = {
    "mask": masked,
    "varlen": ragged,
    "varlen, grouped": grouped,
    "flex": flexible,
}
"""The first is in use on a CPU, the third on a GPU; in fp32 all are compared with the first."""


def gradients(forward: Forward, tensors: list[Tensor]) -> list[Tensor]:
    """What comes out, and the gradients of queries, keys and values."""
    q, k, v = (x.clone().requires_grad_() for x in tensors[:3])
    out = forward(q, k, v)
    out.backward(tensors[3])
    return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


def attention(asked: Asked, put: Put) -> None:
    """8 and 64 rows: how far from fp32, how long, how much memory."""
    device, dtype, told = device_of(asked), dtype_of(asked), []
    sizes = (2, 5, 7, (4, 2, 16)) if asked.small else (8, 256, 1024, (12, 2, 128))
    few = Case(1, *sizes, device)
    right = gradients(masked(few), few.tensors(torch.float32))
    for name, way in WAYS.items():  # FlexAttention compiles for every length, and so is last
        for prompts in (1, 2) if asked.small else (1, 8):
            case = Case(prompts, *sizes, device)
            found = attempt(measured, way, case, dtype)
            if "error" not in found and prompts == 1:
                made = gradients(way(few), few.tensors(dtype))
                pairs = zip("oqkv", made, right, strict=True)
                found["off"] = {of: apart(x, y) for of, x, y in pairs}
            put(f"{case.prompts * case.group} rows, {name}", found)
            if "error" not in found:
                told.append(f"{case.prompts * case.group} x {name} {found['seconds'] * 1e3:.1f}")
    put("line", "ms forward and backward: " + ", ".join(told))


def measured(way: Callable[[Case], Forward], case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds of the first call, of forward alone, of both ways; the most memory of both."""
    device, forward, tensors = case.device, way(case), case.tensors(dtype)
    began = time.perf_counter()
    gradients(forward, tensors)
    wait(device)
    first = time.perf_counter() - began
    with torch.no_grad():
        alone = seconds(lambda: forward(*tensors[:3]), device)
    both = seconds(lambda: gradients(forward, tensors), device)
    most = peak(lambda: gradients(forward, tensors), device)
    return {
        "first_seconds": first,
        "forward_seconds": alone,
        "seconds": both,
        "peak_bytes": most,
    }
