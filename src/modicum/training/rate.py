"""The learning rate at which one first optimizer step moves the policy by a given KL.

    rate = tried * sqrt(KL / KL of the step at the tried rate)

The problems of a rollout are split in two halves. The gradient of one half makes first steps of the
run's own optimizer, schedule and rounding, from weights that are put back afterwards; on the
completions of the other half, which were drawn from the untrained policy p, the KL is read,

    KL(p || q) = mean over tokens of exp(d) - 1 - d,    d = log q - log p

(k3 of http://joschu.net/blog/kl-approx.html, unbiased and never below 0). On the completions of the
gradient itself it would be up to five times as large. Near such steps it grows with the square of
the rate, so two or three steps are enough. docs/rates.md has what the rule was measured on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from modicum.engine import logprobs
from modicum.engine.backward import Heard, forward_backward
from modicum.objectives import Counts
from modicum.plan.sizes import Chosen
from modicum.recipes import start_rate
from modicum.training.session import Session
from modicum.types import Batch, Group, Row

TARGET = 0.01  # nats a token
NEAR = 3.0  # the square law holds this far from the target, in KL
MOST_TRIES = 8
MOST_ROWS = 128  # of the gradient, and as many of the held-out half
FEWEST_TOKENS = 64
LEAST, MOST = TARGET / 30**2, 1.0  # nats of a first step; far above, the square law has ended


def find(session: Session, groups: Sequence[Group], batch: Batch) -> Chosen:
    """The rate for a run, from a rollout of its untrained policy; nothing is changed.

    Where the rollout does not say (too few tokens, nothing finite) it is that of the table of
    `recipes.start_rate`, by kind and size of the update.
    """
    start = start_rate(session.update, session.active_parameters)
    halves = split(groups, batch)
    if halves is None:
        return Chosen(
            start, "by kind and size of the update: the first rollout was too small to try"
        )
    with trial(session, batch, *halves) as look:
        value, kl = search(lambda rate: divergence(look(rate)), start, TARGET)
    if not kl:
        return Chosen(
            start, "by kind and size of the update: no step of the first rollout was finite"
        )
    return Chosen(value, f"a first step at this rate moves the policy by {TARGET:g} nats a token")


def search(kl_at: Callable[[float], float], start: float, target: float) -> tuple[float, float]:
    """The rate at which `kl_at` is the target, and the KL that was nearest; 0: there was none."""
    rate, found = start, 0.0
    for _ in range(MOST_TRIES):
        found = kl_at(rate)
        if not math.isfinite(found):
            rate, found = rate / 10, 0.0
            continue
        factor = math.sqrt(target / found) if found > 0 else 100.0
        rate *= min(100.0, max(0.01, factor))
        if target / NEAR <= found <= target * NEAR:
            break
    return rate, found


def divergence(ratio_N: Tensor) -> float:
    """KL in nats a token, from log-ratios d = log q - log p of tokens drawn from p."""
    return float((ratio_N.expm1() - ratio_N).mean())


def split(groups: Sequence[Group], batch: Batch) -> tuple[list[Row], list[Row]] | None:
    """Rows of every other problem that give a gradient, and all completions of the others.

    None where neither half has a signal, or the other one has too few tokens.
    """
    for odd in (0, 1):
        given = [row for row in batch.rows if row.group % 2 == odd]
        held = [
            Row(group.prompt, c.tokens, c.logprobs, 0.0, number, c.trunk)
            for number, group in enumerate(groups)
            for c in group.completions
            if number % 2 != odd
        ]
        signal = any(row.group in batch.signal for row in given)
        if signal and sum(len(row.tokens) for row in held) >= FEWEST_TOKENS:
            return given[:MOST_ROWS], held[:MOST_ROWS]
    return None


@contextmanager
def trial(
    session: Session, batch: Batch, given: Sequence[Row], held: Sequence[Row]
) -> Iterator[Callable[[float], Tensor]]:
    """Gives `look(rate)`: log-ratios [N] of the tokens of `held` after a first step on `given`.

    All is as before at the end. `batch` has the counts that the loss is divided by.
    """
    before_N = _logprobs(session, held)
    optimization, config = session.optimization, session.config
    counts = Counts(batch.num_rows, batch.num_tokens, config.sampling.max_tokens)
    size = config.batch.micro_batch
    for start in range(0, len(given), size):
        rows = given[start : start + size]
        held_by = (session.policy, session.prepared, session.objective)
        forward_backward(*held_by, rows, counts, config.sampling, None)
        optimization.masters.collect()
    with optimization.tried() as step:

        def look(rate: float) -> Tensor:
            step(rate)
            return _logprobs(session, held) - before_N

        yield look


def _logprobs(session: Session, rows: Sequence[Row]) -> Tensor:
    """Log-probs [N] of the rows' tokens under the policy as it is."""
    size, sampling = session.config.batch.micro_batch, session.config.sampling
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    with torch.no_grad():
        found = [logprobs.logprobs(session.policy.scorer, part, sampling)[0] for part in parts]
    return torch.cat(found).double()


def far_off(session: Session, heard: Sequence[Heard], rate: float) -> str:
    """A warning if a first step that was just taken at `rate` went much too far, or hardly moved.

    It is read on completions that were trained on, so only roughly. `heard` has their log-probs
    from before the step.
    """
    rows = [replace(row, advantage=0.0) for part, *_ in heard for row in part]
    before_N = torch.cat([policy_N for _, policy_N, _ in heard]).double()
    count = max(1, min(len(rows), MOST_ROWS // 4))
    after_N = _logprobs(session, rows[:count])
    kl = divergence(after_N - before_N[: len(after_N)])
    if LEAST <= kl <= MOST:
        return ""
    how = "far below" if kl < LEAST else "far above"
    return (
        f"the first step moved the policy by {kl:.2g} nats a token, where {TARGET:g} is usual: the"
        f" learning rate {rate:.2g} is {how} what such runs learn best with (--learning-rate auto)"
    )
