"""The batch of a step, with what the objective must hear from the model before it is made.

    refer       the reference's log-probs of every completion, for a KL term in the reward
    make_batch  advantages (`step`)
    narrow      only the tokens that the policy was least sure of keep their advantage

Most objectives ask for neither, and nothing is run. Both look at the whole batch, before it is cut
into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from modicum.engine import logprobs
from modicum.engine.backward import reference_logprobs
from modicum.objectives.parts import top_share
from modicum.training.rate import unpaid
from modicum.training.session import Session
from modicum.training.step import make_batch, within_memory
from modicum.types import Batch, Group, Row


def batch_of(session: Session, groups: Sequence[Group], rewards_PG: Tensor) -> Batch:
    """`step.make_batch` of a rollout of the present policy, as the run's objective asks."""
    objective = session.objective
    if objective.kl_in_reward:
        groups = refer(session, groups)
    batch = make_batch(objective, groups, rewards_PG)
    return batch if objective.entropy_share == 1 else narrow(session, batch)


def refer(session: Session, groups: Sequence[Group]) -> list[Group]:
    """The groups with the reference's log-probs of every completion."""
    rows = [row for number in range(len(groups)) for row in unpaid(groups, number)]
    policy, prepared, sampling = session.policy, session.prepared, session.config.sampling
    found = iter(_heard(session, rows, lambda r: reference_logprobs(policy, prepared, r, sampling)))
    return [
        replace(g, completions=tuple(replace(c, reference=next(found)) for c in g.completions))
        for g in groups
    ]


def narrow(session: Session, batch: Batch) -> Batch:
    """The batch in which tokens of low entropy have no advantage.

    The share counts the tokens of rows that have an advantage; entropies are the old policy's.
    """
    paid = [row for row in batch.rows if any(row.advantages)]
    if not paid:
        return batch
    policy, sampling = session.policy, session.config.sampling
    with torch.no_grad():
        found = _heard(session, paid, lambda r: logprobs.logprobs(policy.scorer, r, sampling)[1])
    entropy_N = torch.tensor([value for row in found for value in row])
    kept_N = iter(top_share(entropy_N, session.objective.entropy_share).tolist())
    rows = (
        replace(row, advantage=tuple(a * next(kept_N) for a in row.advantages))
        if any(row.advantages)
        else row
        for row in batch.rows
    )
    return replace(batch, rows=tuple(rows))


def _heard(
    session: Session, rows: Sequence[Row], hear: Callable[[Sequence[Row]], Tensor]
) -> list[tuple[float, ...]]:
    """What `hear` gives for every token of each row, a micro-batch at a time."""

    def work() -> Tensor:
        size = session.config.batch.micro_batch
        return torch.cat([hear(rows[at : at + size]) for at in range(0, len(rows), size)])

    heard_N = within_memory(session, len(rows), work)
    return [tuple(part.tolist()) for part in heard_N.split([len(row.tokens) for row in rows])]
