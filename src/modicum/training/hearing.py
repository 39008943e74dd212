"""The batch of a step, with what the objective must hear from the model for it, and the gold verdicts.

The reference's log-probs for a KL in the reward, a critic's values, and the entropy at every token where
only a share of them trains; all of the whole batch. Most objectives ask for none, and nothing is run."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from modicum import stats
from modicum.draws import EVERYTHING, Taken
from modicum.engine import logprobs
from modicum.engine.logprobs import reference_logprobs
from modicum.objectives.corrections import measured
from modicum.rewards import StepExtras
from modicum.training.critic import Critic
from modicum.training.rate import unpaid
from modicum.training.rollout import Rollout
from modicum.training.session import Session
from modicum.training.step import make_batch, within_memory
from modicum.types import Batch, Group, Row, Weights

T = TypeVar("T")
Work = Callable[[Sequence[Any]], T]  # of what is in a micro-batch


def batch_of(
    session: Session, groups: Sequence[Group], rewards_PG: Tensor, taken: Taken = EVERYTHING
) -> Batch:
    """`step.make_batch` of a rollout of the present policy, as the run's objective asks."""
    if session.objective.kl_in_reward and not groups[0].completions[0].reference:
        groups = refer(session, groups, taken)
    batch = make_batch(session.objective, groups, rewards_PG, taken)
    return narrow(session, batch) if session.objective.entropy_share < 1 else batch


def valued(session: Session, critic: Critic, rollout: Rollout) -> Rollout:
    """The rollout with the values of its tokens; the critic has seen it only afterwards.

    It learns from all groups that were drawn. None of them is trained while it warms up."""
    goal, rewards_R = critic.goal, rollout.rewards_PG.flatten()
    groups = refer(session, rollout.groups) if goal.kl_in_reward else rollout.groups
    rows = [row for number in range(len(groups)) for row in unpaid(groups, number)]
    lengths = [len(row.tokens) for row in rows]
    returns_N = goal.returns(groups, goal.advantages(rollout.rewards_PG))
    if not critic.counters.rollouts:
        critic.begin(float(rewards_R.nanmean().nan_to_num(0.0)))
    team = session.parallel
    with torch.no_grad():
        held = [item for part in _each(session, team.mine(rows), critic.read) for item in part]
    told = _heard(session, rows, critic.values, held)
    values_N = torch.tensor([value for of in told for value in of], dtype=torch.double)
    used_N = critic.judge(values_N, returns_N, rewards_R, lengths)
    taken = rollout.taken._replace(kept=()) if critic.warm else rollout.taken
    known_R = (~rewards_R.isnan()).tolist()
    count = sum(length for length, known in zip(lengths, known_R, strict=True) if known)
    learn = partial(critic.learn, count=count)
    mine = [number for number, row in enumerate(rows) if team.owns(row.group)]
    returns = returns_N.split(lengths)
    fitted = [(item, returns[n]) for item, n in zip(held, mine, strict=True) if known_R[n]]
    for _ in range(goal.passes if count else 0):
        loss = sum(_each(session, fitted, learn, critic.steps.begin_anew))
        team.reduce(critic.steps.optimizer)
        critic.step(team.summed({"loss": loss})["loss"])
    critic.counters.rollouts += 1
    values = (tuple(values_T.tolist()) for values_T in used_N.split(lengths))
    each = [tuple(replace(c, values=next(values)) for c in g.completions) for g in groups]
    whole = [replace(g, completions=of) for g, of in zip(groups, each, strict=True)]
    return rollout._replace(groups=whole, taken=taken)


def refer(session: Session, groups: Sequence[Group], taken: Taken = EVERYTHING) -> list[Group]:
    """The groups with the reference's log-probs of every completion that is trained.

    Others in kept groups have their own in the place of them, and no other group has any."""
    kept = range(len(groups)) if taken.kept is None else taken.kept
    wanted = _rows(groups, kept, taken)
    known = session.policy.scorer, session.prepared, session.config.sampling
    heard = _heard(session, [*wanted.values()], lambda part: reference_logprobs(*known, part))
    told = dict(zip(wanted, heard, strict=True))
    found = list(groups)
    for number in kept:
        every = enumerate(groups[number].completions)
        own = [replace(c, reference=told.get((number, m), c.logprobs)) for m, c in every]
        found[number] = replace(groups[number], completions=tuple(own))
    return found


def corrected(session: Session, rollout: Rollout) -> tuple[Rollout, dict[str, float]]:
    """The rollout of another sampler with the trainer's own log-probs, and weights, where it is trained.

    Also how far the two are apart, of all completions that were heard: those of groups with a signal
    where others have no part in the loss. A sampler of this process leaves all as it is."""
    goal, choice, groups = session.objective, session.correction, list(rollout.groups)
    if session.policy.sampler.in_process or not rollout.kept:
        return rollout, {}
    says = goal.signal(rollout.rewards_PG[list(rollout.kept)]).tolist()
    every = not goal.droppable or choice.divides == "kept"
    kept = [number for number, signal in zip(rollout.kept, says, strict=True) if signal or every]
    # In the order of the batch, so that its micro-batches round alike.
    kept.sort(key=lambda number: max(len(c.tokens) for c in groups[number].completions))
    scorer, known = session.policy.scorer, session.config.sampling
    wanted = _rows(groups, kept, rollout.taken)
    rows, apart, weights = [*wanted.values()], list[Tensor](), list[Weights]()
    heard = _heard(session, rows, lambda part: logprobs.logprobs(scorer, part, known)[0])
    for (number, member), row, old in zip(wanted, rows, heard, strict=True):
        old_T, said_T = torch.tensor([old, row.logprobs], dtype=torch.double)
        apart.append(old_T - said_T)
        weights.append(choice.weights(apart[-1]))
        told: Any = {"logprobs": old, "weights": weights[-1]} if choice.form == "decoupled" else {}
        completions = list(groups[number].completions)
        completions[member] = replace(completions[member], sampled=row.logprobs, **told)
        groups[number] = replace(groups[number], completions=tuple(completions))
    metrics = measured(torch.cat(apart), weights) if apart else {}
    return rollout._replace(groups=groups), metrics


def narrow(session: Session, batch: Batch) -> Batch:
    """The batch without the advantages of all but the share of tokens with the highest entropy.

    The share is one of the tokens that have an advantage, the entropy the old policy's."""
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
    """What is right where the reward does not pay it; under a learned one also how they differ.

    The verdicts go to samples.jsonl as well. The KL is that of the first completion of each group
    from the reference (k1, summed), which costs a forward of one in G."""
    if not (name := session.reward.learned) and "accuracy" in rollout.scores[0][0]:
        return {}
    if not name:
        pairs = ((group.problem, c.text) for group in rollout.groups for c in group.completions)
        right = [session.task.grade(problem, text).strict for problem, text in pairs]
        return {"completions/accuracy": statistics.fmean(right)}
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


def _rows(groups: Sequence[Group], kept: Sequence[int], taken: Taken) -> dict[tuple[int, int], Row]:
    """The rows of some groups that have a part in the loss, by group and member."""
    return {
        (number, member): row
        for number in kept
        for member, row in enumerate(unpaid(groups, number))
        if taken.cut != "mask" or groups[number].completions[member].finished
    }


@torch.no_grad()
def _heard(
    session: Session, rows: Sequence[Row], hear: Work[Tensor], held: Sequence[Any] | None = None
) -> list[tuple[float, ...]]:
    """What `hear` gives for the tokens of each row, or what is `held` of it, where its group is."""
    team, mine = session.parallel, session.parallel.mine(rows)
    found = _each(session, mine if held is None else held, lambda part: hear(part).cpu())
    parts = iter(torch.cat([torch.empty(0), *found]).split([len(row.tokens) for row in mine]))
    told = team.each([row.group for row in rows], lambda _: next(parts).tolist())
    return [tuple(values) for values in told]


def _each(
    session: Session, items: Sequence[Any], work: Work[T], undo: Callable[[], None] = lambda: None
) -> list[T]:
    """What `work` gives for the items of every micro-batch, anew where memory runs out."""

    def whole() -> list[T]:
        size = session.config.batch.micro_batch
        return [work(items[at : at + size]) for at in range(0, len(items), size)]

    return within_memory(session, len(items), whole, undo)
