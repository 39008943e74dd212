"""The stages of one step: sample, score, batch, reference, backward, optimizer.

Forward only: each stage takes what the one before it made. `train.train` calls them.

Shapes: P problem, G member, N completion tokens of a micro-batch laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modicum import objective
from modicum.engine import logprobs
from modicum.engine.base import tokens_of
from modicum.engine.rollout import rollout
from modicum.session import Session
from modicum.tasks.prompts import encode
from modicum.types import Batch, Group, Row

References = dict[tuple[int, int], Tensor]
"""Log-probs of the reference by (group or -1, micro-batch)."""


def switch(session: Session) -> dict[str, Any] | None:
    """At a rollout boundary, let the schedule say what trains now.

    Returns what was decided and on what evidence, for the log; None: nothing was.
    """
    prepared, decision = session.prepared, session.optimization.switch()
    if decision is None:
        return None
    session.engine.follow(prepared.lowest_layer)
    everything = len(prepared.active) == len(prepared.trainable)
    return {
        "trains": "all" if everything else sorted(prepared.active),
        "parameters": session.active_parameters,
        "optimizer_bytes": session.optimization.state_bytes(),
        "evidence": dict(decision.evidence),
    }


def sample_groups(session: Session, step: int) -> list[Group]:
    """The problems of a step and G completions of each, from the current policy."""
    config = session.config
    settings, count = config.sampling, config.batch.prompts_per_step
    problems = session.curriculum.problems(session.task, config.seed, step, count)
    tokenizer = session.loaded.tokenizer
    prompts = [encode(p, tokenizer, settings) for p in problems]
    keys = [("train", config.seed, step, index) for index in range(count)]
    completions = rollout(
        session.engine,
        session.loaded,
        prompts,
        keys,
        config.batch.group_size,
        settings,
        config.batch.rollout_batch,
        trunk_bytes=config.compute.trunk_bytes,
    )
    return [Group(*parts) for parts in zip(problems, prompts, completions, strict=True)]


def score(
    session: Session, groups: Sequence[Group], faults: list[str] | None = None
) -> list[list[dict[str, float]]]:
    """The raw value of every reward term, for every completion of every group.

    NaN is no verdict. What could not be scored has 0 and a line in `faults`.
    """
    found = [] if faults is None else faults
    return [
        session.reward.score_group(session.task, group.problem, group.completions, found)
        for group in groups
    ]


def make_batch(session: Session, groups: Sequence[Group], rewards_PG: Tensor) -> Batch:
    """The rows that have a signal, and the counts of all rows.

    A group whose rewards are all equal is left out, unless a KL term acts on it.
    """
    advantages_PG = objective.group_advantages(rewards_PG, session.objective.scale)
    rows, num_rows, num_tokens, longest = [], 0, 0, {}
    for index, (group, advantages) in enumerate(zip(groups, advantages_PG.tolist(), strict=True)):
        longest[index] = max(len(completion.tokens) for completion in group.completions)
        for completion, advantage in zip(group.completions, advantages, strict=True):
            num_rows += 1
            num_tokens += len(completion.tokens)
            if advantage != 0 or session.objective.kl > 0:
                given = (completion.tokens, completion.logprobs, advantage)
                rows.append(Row(group.prompt, *given, group=index, trunk=completion.trunk))
    # Rows of a group share a micro-batch and its prompt; groups of similar length are near.
    rows.sort(key=lambda row: (longest[row.group], row.group))
    return Batch(tuple(rows), num_rows, num_tokens)


def _parts(session: Session, batch: Batch) -> list[tuple[Row, ...]]:
    size = session.config.batch.micro_batch
    return [batch.rows[start : start + size] for start in range(0, len(batch.rows), size)]


def _of_groups(batch: Batch) -> list[Batch]:
    """The batch in parts that hold one group each, with the counts of the whole."""
    numbers = dict.fromkeys(row.group for row in batch.rows)
    return [
        replace(batch, rows=tuple(row for row in batch.rows if row.group == number))
        for number in numbers
    ]


def backward(session: Session, batch: Batch, references: References) -> dict[str, float]:
    """Accumulate the gradient of the whole batch in the masters; returns sums for the log.

    `references` holds the reference's log-probs of each micro-batch; what is missing and
    needed for a KL term is put there, so that further updates on the batch find it. A
    schedule that asks for it is shown the gradient of each group with a signal.
    """
    schedule, held = session.prepared.schedule, session.optimization
    if not (schedule.by_group and batch.has_signal):
        return _backward(session, batch, references, -1)
    total: dict[str, Tensor] = {}
    sums: dict[str, float] = {}
    for part in _of_groups(batch):
        group = part.rows[0].group
        found = _backward(session, part, references, group)
        sums = {key: sums.get(key, 0.0) + amount for key, amount in found.items()}
        gradients = {name: grad.detach().clone() for name, grad in held.gradients().items()}
        if part.has_signal:
            schedule.group_gradients(gradients)
        for name, grad in gradients.items():
            total[name] = grad if name not in total else total[name] + grad
        held.clear()
    for name, grad in total.items():
        held.masters.held[name].tensor.grad = grad
    return sums


def _backward(
    session: Session, batch: Batch, references: References, group: int
) -> dict[str, float]:
    """`backward` of the batch, or of one group of it."""
    sums = {"loss": 0.0, "tokens": 0.0}
    engine, goal, sampling = session.engine, session.objective, session.config.sampling
    prepared = session.prepared
    for number, part in enumerate(_parts(session, batch)):
        token_N = tokens_of(part, engine.device)
        pack = engine.pack(part)
        trunk = engine.trunk(pack)
        if goal.kl > 0 and (group, number) not in references:
            with torch.no_grad(), prepared.reference():
                # What rests now may have trained before: then the trunk is not the reference's.
                same = prepared.lowest_ever == prepared.lowest_layer
                hidden_NH = engine.hidden(pack, trunk if same else None)
                found = logprobs.head_logprobs(engine, hidden_NH, token_N, sampling)
            references[group, number] = found[0]
        tokens = _tokens(session, batch, part, references.get((group, number)))

        def loss(policy_N: Tensor, where: slice, tokens: objective.Tokens = tokens) -> Tensor:
            value, found = objective.loss(goal, policy_N, tokens.part(where))
            for key, amount in (found | {"loss": value.detach()}).items():
                sums[key] = sums.get(key, 0.0) + float(amount)
            return value

        hidden_NH = engine.hidden(pack, trunk)
        policy_N, entropy_N = logprobs.backward(engine, hidden_NH, token_N, sampling, loss)
        session.masters.collect()
        difference = (policy_N - tokens.old_N).abs().sum()
        for key, amount in {"entropy": entropy_N.sum(), "difference": difference}.items():
            sums[key] = sums.get(key, 0.0) + float(amount)
        sums["tokens"] += len(policy_N)
    return sums


def _tokens(
    session: Session, batch: Batch, part: Sequence[Row], reference_N: Tensor | None
) -> objective.Tokens:
    """What the loss needs to know of a micro-batch's tokens."""
    device, goal = session.engine.device, session.objective
    lengths = torch.tensor([len(row.tokens) for row in part], device=device)
    advantages = torch.tensor([row.advantage for row in part], device=device)
    limit = session.config.sampling.max_tokens
    return objective.Tokens(
        torch.tensor([p for row in part for p in row.logprobs], device=device),
        torch.repeat_interleave(advantages, lengths),
        reference_N,
        objective.weights(lengths, goal.aggregate, batch.num_rows, batch.num_tokens, limit),
    )


def rate_at(session: Session) -> float:
    """The learning rate of the next optimizer step."""
    settings, index = session.config.optimizer, session.optimizer_steps
    total = session.config.steps * session.config.batch.updates_per_rollout
    if index < settings.warmup_steps:
        return session.learning_rate * (index + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return session.learning_rate
    left = (total - index) / max(1, total - settings.warmup_steps)
    if session.config.budget.budget:
        left = min(left, 1 - session.progress(0))
    return session.learning_rate * left


def optimizer_step(session: Session, loss: float, has_signal: bool = True) -> float:
    """Clip and step (`Optimization.step`); returns the norm of the gradient before clipping."""
    return session.optimization.step(loss, rate_at(session), has_signal)
