"""Rows made by hand, for steps that sample nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from helpers import engine_of
from modicum.config import Sampling
from modicum.engine import Groups, Policy
from modicum.engine.base import Prompts
from modicum.engine.logprobs import logprobs
from modicum.training import session
from modicum.types import Batch, Row

IDS = torch.tensor([[40, 41, 42, 43, 44, 45], [50, 51, 52, 53, 54, 55]])


def batch_of(made: session.Session) -> Batch:
    """Two groups of two rows made by hand, with the log-probs of the present policy."""
    bare = [
        Row((40, 41, 42 + i // 2), (50 + i, 60, 70 + i, 80), (0.0,) * 4, (-1.0) ** i, group=i // 2)
        for i in range(4)
    ]
    with torch.no_grad():
        engine = engine_of(made.prepared.model)
        old = logprobs(engine, bare, made.config.sampling)[0].view(4, 4).tolist()
    rows = [replace(row, logprobs=tuple(line)) for row, line in zip(bare, old, strict=True)]
    return Batch(tuple(rows), 4, 16, frozenset({0, 1}))


# The contract of every member ------------------------------------------------------------


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model: nn.Module, old: dict[str, Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, old[name])}


def apart(
    policy: Policy, prompts: Prompts, groups: Groups, sampling: Sampling | None = None
) -> Tensor:
    """|difference| [N] between the sampler's log-probs of completions and the scorer's."""
    rows = [
        Row(prompt, c.tokens, c.logprobs, 0.0, group=number)
        for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
        for c in group
    ]
    with torch.no_grad():
        found, _ = logprobs(policy.scorer, rows, sampling or Sampling())
    return (found - torch.tensor([p for row in rows for p in row.logprobs])).abs()
