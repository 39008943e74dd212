"""The batch of a step, with what the objective must hear from the model for it, and the gold verdicts.

The reference's log-probs for a KL in the reward, and the entropy at every token where only a share
of them trains; both of the whole batch. Most objectives ask for neither, and nothing is run.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from modicum import stats
from modicum.draws import EVERYTHING, Taken
from modicum.engine import logprobs
from modicum.engine.logprobs import reference_logprobs
from modicum.rewards import StepExtras
from modicum.training.rate import unpaid
from modicum.training.rollout import Rollout
from modicum.training.session import Session
from modicum.training.step import make_batch, within_memory
from modicum.types import Batch, Group, Row


def batch_of(
    session: Session, groups: Sequence[Group], rewards_PG: Tensor, taken: Taken = EVERYTHING
) -> Batch:
    """`step.make_batch` of a rollout of the present policy, as the run's objective asks."""
    if session.objective.kl_in_reward:
        groups = refer(session, groups, taken)
    batch = make_batch(session.objective, groups, rewards_PG, taken)
    return narrow(session, batch) if session.objective.entropy_share < 1 else batch


def refer(session: Session, groups: Sequence[Group], taken: Taken = EVERYTHING) -> list[Group]:
    """The groups with the reference's log-probs of every completion that is trained.

    Others in kept groups have their own in the place of them, and no other group has any.
    """
    kept = range(len(groups)) if taken.kept is None else taken.kept
    wanted = {
        (number, member): row
        for number in kept
        for member, row in enumerate(unpaid(groups, number))
        if taken.cut != "mask" or groups[number].completions[member].finished
    }
    known = session.policy.scorer, session.prepared, session.config.sampling
    heard = _heard(session, [*wanted.values()], lambda part: reference_logprobs(*known, part))
    told = dict(zip(wanted, heard, strict=True))
    found = list(groups)
    for number in kept:
        every = enumerate(groups[number].completions)
        own = [replace(c, reference=told.get((number, m), c.logprobs)) for m, c in every]
        found[number] = replace(groups[number], completions=tuple(own))
    return found


def narrow(session: Session, batch: Batch) -> Batch:
    """The batch without the advantages of all but the share of tokens with the highest entropy.

    The share is one of the tokens that have an advantage, the entropy the old policy's.
    """
    scorer, sampling = session.policy.scorer, session.config.sampling
    heard = _heard(session, batch.rows, lambda part: logprobs.logprobs(scorer, part, sampling)[1])
    told = [
        (row, list(zip(row.advantages, entropies, strict=True)))
        for row, entropies in zip(batch.rows, heard, strict=True)
    ]
    paid = sorted(entropy for _, tokens in told for a, entropy in tokens if a)
    least = paid[-math.ceil(session.objective.entropy_share * len(paid))] if paid else 0.0
    rows = (replace(r, advantage=tuple(a * (e >= least) for a, e in ts)) for r, ts in told)
    return replace(batch, rows=tuple(rows))


def proxy_metrics(session: Session, rollout: Rollout, extras: StepExtras) -> dict[str, float]:
    """Under a learned reward what is right beside it, which the learner does not see; else nothing.

    The verdicts go to samples.jsonl as well. The KL is that of the first completion of each group
    from the reference (k1, summed), which costs a forward of one in G.
    """
    if not (name := session.reward.learned):
        return {}
    found = defaultdict[str, list[float]](list)
    for group, row in zip(rollout.groups, rollout.scores, strict=True):
        grades = [session.task.grade(group.problem, c.text) for c in group.completions]
        proxy, right = [scores[name] for scores in row], [grade.strict for grade in grades]
        found["strict"] += right
        found["lenient"] += [grade.lenient for grade in grades]
        found["proxy"] += proxy
        if (area := stats.auc(proxy, right)) is not None:
            found["auc"].append(area)
        elif not any(right) and len(right) > 1:
            found["spread"].append(statistics.stdev(proxy))
        for completion, grade in zip(group.completions, grades, strict=True):
            extras.columns[id(completion)] |= {"strict": grade.strict, "lenient": grade.lenient}
    firsts = [replace(group, completions=group.completions[:1]) for group in rollout.groups]
    told = [group.completions[0] for group in refer(session, firsts)]
    ratios = [math.fsum(c.logprobs) - math.fsum(c.reference) for c in told]
    found["kl"] += [ratio for ratio in ratios if math.isfinite(ratio)]
    return {f"gold/{key}": statistics.fmean(of) for key, of in found.items() if of}


@torch.no_grad()
def _heard(
    session: Session, rows: Sequence[Row], hear: Callable[[Sequence[Row]], Tensor]
) -> list[tuple[float, ...]]:
    """What `hear` gives for the tokens of each row, a micro-batch at a time."""

    def work() -> list[tuple[float, ...]]:
        size = session.config.batch.micro_batch
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        heard = [x for p in parts for x in hear(p).split([len(row.tokens) for row in p])]
        return [tuple(values_T.tolist()) for values_T in heard]

    return within_memory(session, len(rows), work)
