"""The batch of a step, with what the objective must hear from the model for it.

The reference's log-probs for a KL in the reward, and the entropy at every token where only a share
of them trains; both of the whole batch. Most objectives ask for neither, and nothing is run.
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
    if session.objective.kl_in_reward:
        groups = refer(session, groups)
    batch = make_batch(session.objective, groups, rewards_PG)
    return narrow(session, batch) if session.objective.entropy_share < 1 else batch


def refer(session: Session, groups: Sequence[Group]) -> list[Group]:
    """The groups with the reference's log-probs of every completion."""
    rows = [row for number in range(len(groups)) for row in unpaid(groups, number)]
    known = session.policy.scorer, session.prepared, session.config.sampling
    found = iter(_heard(session, rows, lambda part: reference_logprobs(*known, part)))
    return [
        replace(g, completions=tuple(replace(c, reference=next(found)) for c in g.completions))
        for g in groups
    ]


def narrow(session: Session, batch: Batch) -> Batch:
    """The batch without the advantages of all but the share of tokens with the highest entropy.

    The share is one of the tokens that have an advantage, the entropy the old policy's.
    """
    scorer, sampling = session.policy.scorer, session.config.sampling
    heard = _heard(session, batch.rows, lambda part: logprobs.logprobs(scorer, part, sampling)[1])
    entropy_N, advantage_N = (
        torch.tensor([x for values in rows for x in values], dtype=torch.double)
        for rows in (heard, [row.advantages for row in batch.rows])
    )
    paid_N = advantage_N != 0
    if paid_N.any():
        advantage_N[paid_N] *= top_share(entropy_N[paid_N], session.objective.entropy_share)
    parts = advantage_N.split([len(row.tokens) for row in batch.rows])
    told = zip(batch.rows, parts, strict=True)
    rows = tuple(replace(row, advantage=tuple(part.tolist())) for row, part in told)
    return replace(batch, rows=rows)


@torch.no_grad()
def _heard(
    session: Session, rows: Sequence[Row], hear: Callable[[Sequence[Row]], Tensor]
) -> list[tuple[float, ...]]:
    """What `hear` gives for the tokens of each row, a micro-batch at a time."""

    def work() -> list[Tensor]:
        size = session.config.batch.micro_batch
        return [hear(rows[at : at + size]) for at in range(0, len(rows), size)]

    lengths = [len(row.tokens) for row in rows]
    heard_N = torch.cat(within_memory(session, len(rows), work))
    return [tuple(part.tolist()) for part in heard_N.split(lengths)]
