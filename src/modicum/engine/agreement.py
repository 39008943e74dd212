"""The agreement proof: completions were sampled from the policy that is trained.

Two checks. Every step, the log-probs that training computes anyway are compared with the
sampler's: that costs nothing. Both may rest on the same kept states, so every few steps
(`agreement_every`) some fresh completions are also scored by the library's whole forward,
which shares no code with the engine. Beyond a tolerance that fits the dtype the run stops:
it never trains on samples of a stale policy, of the base, or of an adapter applied twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modicum.config import Sampling
from modicum.engine.library import LibraryEngine
from modicum.engine.logprobs import logprobs
from modicum.types import Group, Row, RunStopped

TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # largest mean |log-prob difference|, in nats


@torch.no_grad()
def compare(model: Any, device: torch.device, groups: Sequence[Group], sampling: Sampling) -> float:
    """Mean |log-prob difference| a token, in nats, over two completions.

    They are the first of the first group and the last of the last.
    """
    ends = [(groups[0], groups[0].completions[0]), (groups[-1], groups[-1].completions[-1])]
    rows = [Row(group.prompt, c.tokens, c.logprobs, 0.0) for group, c in ends]
    found_N, _ = logprobs(LibraryEngine(model, device), rows, sampling)
    sampled_N = torch.tensor([p for row in rows for p in row.logprobs], device=device)
    return float((found_N - sampled_N).abs().mean())


def require(mean: float, dtype: str, by: str) -> None:
    """RunStopped when the mean difference is past the tolerance (or not a number)."""
    limit = TOLERANCE[dtype]
    if not mean <= limit:
        raise RunStopped(
            f"agreement proof: log-probs of sampler and {by} differ by {mean:.2g} nats a token"
            f" (at most {limit:g}); the completions were not sampled from the current policy"
        )
