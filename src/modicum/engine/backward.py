"""Forward and backward of one micro-batch: log-probs, loss, gradients.

It knows no run: the loop, the planner and a page of one's own call it alike.

Shapes: R row, N completion tokens of the rows laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from modicum.config import Sampling
from modicum.engine import logprobs
from modicum.engine.base import Scorer, tokens_of
from modicum.engine.policy import Policy
from modicum.objectives.base import Counts, Objective, Tokens
from modicum.types import Row
from modicum.updates.base import Prepared

Heard = tuple[Sequence[Row], Tensor, Tensor]
"""Rows, and the log-prob [N] and entropy [N] of their tokens."""


def forward_backward(
    policy: Policy,
    prepared: Prepared,
    objective: Objective,
    rows: Sequence[Row],
    counts: Counts,
    sampling: Sampling,
    sums: dict[str, float] | None,
    reference_N: Tensor | None = None,
    heard: list[Heard] | None = None,
) -> Tensor | None:
    """Add the gradient of the rows' loss to every `grad` of what trains.

    `counts` are those of the whole batch. What is summed over tokens for the log is added to
    `sums`, if it is given (those of `Objective.token_loss`, `loss`, `tokens` and `entropy`); the
    log-probs themselves to `heard`. Returns the reference's log-probs, computed unless they
    are given; None when the objective needs none.
    """
    scorer = policy.scorer
    token_N = tokens_of(rows, scorer.device)
    pack = scorer.pack(rows)
    trunk = scorer.trunk(pack)
    if objective.needs_reference and reference_N is None:
        reference_N = reference_logprobs(scorer, prepared, sampling, rows, pack, trunk)
    tokens = _tokens(objective, rows, counts, reference_N, scorer.device)

    def add(key: str, amount: Tensor | int) -> None:
        if sums is not None:
            sums[key] = sums.get(key, 0.0) + float(amount)

    def loss(policy_N: Tensor, where: slice, entropy_N: Tensor | None = None) -> Tensor:
        value, found = objective.loss(policy_N, tokens.part(where), entropy_N)
        for key, amount in (found | {"loss": value.detach()}).items():
            add(key, amount)
        return value

    ends = list(accumulate(len(row.tokens) for row in rows)) if objective.whole_rows else None
    hidden_NH = scorer.hidden(pack, trunk)
    how: dict[str, Any] = {"row_ends": ends, "entropy_learns": objective.entropy > 0}
    policy_N, entropy_N = logprobs.backward(scorer, hidden_NH, token_N, sampling, loss, **how)
    add("entropy", entropy_N.sum())
    add("tokens", len(policy_N))
    if heard is not None:
        heard.append((rows, policy_N, entropy_N))
    return reference_N


@torch.no_grad()
def reference_logprobs(
    scorer: Scorer,
    prepared: Prepared,
    sampling: Sampling,
    rows: Sequence[Row],
    pack: Any = None,
    trunk: Tensor | None = None,
) -> Tensor:
    """Log-probs [N] of the rows' tokens under the reference, which the rows may hold already."""
    if rows[0].reference:
        return torch.tensor([p for row in rows for p in row.reference], device=scorer.device)
    if pack is None:
        pack = scorer.pack(rows)
        trunk = scorer.trunk(pack)
    with prepared.reference():
        hidden_NH = scorer.hidden(pack, trunk if prepared.trunk_is_reference else None)
        return logprobs.head_logprobs(scorer, hidden_NH, tokens_of(rows, scorer.device), sampling)[
            0
        ]


def _tokens(
    objective: Objective,
    rows: Sequence[Row],
    counts: Counts,
    reference_N: Tensor | None,
    device: torch.device,
) -> Tokens:
    """What the loss needs to know of the rows' tokens."""
    lengths_R = torch.tensor([len(row.tokens) for row in rows], device=device)
    advantages = [value for row in rows for value in row.advantages]
    return Tokens(
        torch.tensor([p for row in rows for p in row.logprobs], device=device),
        torch.tensor(advantages, device=device),
        reference_N,
        objective.weights(lengths_R, counts),
        torch.repeat_interleave(torch.arange(len(rows), device=device), lengths_R),
    )
