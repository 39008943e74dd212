"""One step, from problems to new weights.

    switch          the schedule says what trains now
    sample_groups   problems in order, completions of the current policy
    agree           they are of this policy (`engine.agreement`)
    score           rewards, one column a term (these three until there are groups enough: `rollout`)
    make_batch      advantages; rows that would change nothing are left out (`hearing.batch_of`)
    backward        log-probs, loss and gradients, a micro-batch at a time
    optimizer_step  clip and step

Forward only: each stage takes what the one before it made; `loop.run_step` calls them.

Shapes: P problem, G member."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from modicum import machine
from modicum.draws import EVERYTHING, Taken
from modicum.engine.logprobs import Heard, Sums, forward_backward, read
from modicum.engine.slopes import as_array
from modicum.engine.version import require_origin, require_stops
from modicum.objectives.base import Counts, Objective
from modicum.parallel import Team
from modicum.rewards import Reward
from modicum.tasks import Task
from modicum.tasks.prompts import encode, stops
from modicum.training.session import Session
from modicum.types import Batch, Group, Row, RunStopped, UserError

T = TypeVar("T")
ALONE = Team()
References = dict[tuple[int, int], Tensor]
"""Log-probs of the reference by (group or -1, micro-batch)."""
Scores = list[list[dict[str, float]]]
"""The value of every reward term, for every completion of every group."""


def switch(session: Session) -> dict[str, Any] | None:
    """At a rollout boundary let the schedule say what trains; what it decided, and why, or None."""
    prepared, decision = session.prepared, session.optimization.switch()
    if decision is None:
        return None
    session.policy.follow(prepared)
    refit = session.critic.follow(prepared.lowest_layer) if session.critic else {}
    everything = len(prepared.active) == len(prepared.trainable)
    return {
        "trains": "all" if everything else sorted(prepared.active),
        "parameters": session.active_parameters,
        "optimizer_bytes": session.optimization.state_bytes(),
        "evidence": dict(decision.evidence),
        **refit,
    }


def sample_groups(
    session: Session, step: int, count: int | None = None, first: int = 0
) -> list[Group]:
    """The problems of a step, or `count` more after `first`, and G completions of each."""
    config = session.config
    count = config.batch.prompts_per_step if count is None else count
    problems = session.order.next(count, session.progress(step))
    if len(problems) != count:
        raise UserError(f"{config.curriculum} gave {len(problems)} problems for a step of {count}")
    written = session.policy.tokenizer, config.sampling, session.examples
    prompts = [encode(problem, *written) for problem in problems]
    keys = [("train", config.seed, step, first + index) for index in range(len(problems))]
    size = config.batch.group_size
    # States of later rounds are not kept: memory is what a step of one round takes.
    found = session.policy.sample(prompts, keys, size, config.sampling, keep_trunk=not first)
    return [Group(*parts) for parts in zip(problems, prompts, found, strict=True)]


def agree(session: Session, groups: list[Group], step: int) -> None:
    """The agreement proof of fresh completions."""
    proof, policy, sampling = session.agreement, session.policy, session.config.sampling
    require_origin(groups, sampling, policy.changed.version)
    require_stops(groups, policy.tokenizer, stops(policy.tokenizer, sampling))
    if proof.due(step):
        session.agreed(proof.check(policy, session.prepared, groups, step))
    if proof.due(step + 1):
        proof.remember(session.prepared)


def agree_trained(session: Session, heard: list[Heard]) -> None:
    """The agreement proof of the log-probs that were trained with, which may be none here."""
    if not heard:
        session.agreed(0.0)
        return
    rows = [row for part, *_ in heard for row in part]
    trainer_N = as_array(torch.cat([policy_N for _, policy_N, _ in heard]))
    entropy_N = as_array(torch.cat([found_N for *_, found_N in heard]))
    session.agreed(session.agreement.trained(rows, trainer_N, entropy_N, session.policy))


def score(
    task: Task,
    reward: Reward,
    groups: Sequence[Group],
    faults: list[str],
    cut: str = "score",
    before: int = 0,
    team: Team = ALONE,
) -> tuple[Scores, Tensor]:
    """The raw value of every reward term, and the totals [P, G], which the processes share to find.

    NaN is no verdict. What could not be scored has 0 and a line in `faults`. RunStopped when a
    term has failed for all completions of these groups and so many `before`: whatever was trained
    then would not be what was meant. With `cut` "zero" all terms of what max_tokens cut are 0."""

    def judged(number: int) -> tuple[list[dict[str, float]], list[str]]:
        group, wrong = groups[number], list[str]()
        return reward.score_group(task, group.problem, group.completions, wrong), wrong

    told = team.each(range(len(groups)), judged)
    scores = [row for row, _ in told]
    faults += [fault for _, wrong in told for fault in wrong]
    if cut == "zero":
        for group, row in zip(groups, scores, strict=True):
            for completion, terms in zip(group.completions, row, strict=True):
                terms.update({} if completion.finished else dict.fromkeys(terms, 0.0))
    count = sum(len(group.completions) for group in groups)
    count += before * len(groups[0].completions)
    for _, term in reward.terms:
        failed = [fault for fault in faults if fault.startswith(f"{term}: ")]
        if len(failed) == count:
            raise RunStopped.of("reward_failed", fault=failed[0], count=count)
    return scores, torch.tensor([[reward.total(s) for s in row] for row in scores])


def make_batch(
    objective: Objective, groups: Sequence[Group], rewards_PG: Tensor, taken: Taken = EVERYTHING
) -> Batch:
    """The rows that change something, and the counts of all rows.

    Rows without advantage are left out where the objective says that they may be, and all rows of
    groups that are not kept. Advantages are those among the kept groups. What `cut` masks stays in
    the mean of its group and not in that of the batch; weights of a correction come after both."""
    rows, num_rows, num_tokens, longest = [], 0, 0, {}
    every = range(len(groups))
    kept = every if taken.kept is None else taken.kept
    some = [groups[n] for n in kept]
    earned_PG, more = rewards_PG[list(kept)], dict[str, Tensor]()
    if some and objective.whitened and taken.cut == "mask":
        more["part_PG"] = torch.tensor([[c.finished for c in group.completions] for group in some])
        if not objective.compares:  # of the whole batch, where they have no part either
            earned_PG = earned_PG.masked_fill(~more["part_PG"], float("nan"))
    advantages = objective.row_advantages(some, earned_PG, **more) if some else []
    found = dict(zip(kept, advantages, strict=True))
    for index in kept if taken.divides == "kept" else every:
        group = groups[index]
        longest[index] = max(len(completion.tokens) for completion in group.completions)
        for member, completion in enumerate(group.completions):
            weights, size = completion.weights, len(completion.tokens)
            part = tuple(weight is not None for weight in weights) or (True,) * size
            if (weights and not any(part)) or (taken.cut == "mask" and not completion.finished):
                continue
            num_rows += 1
            num_tokens += sum(part)
            if index not in found:
                continue
            given = (completion.tokens, completion.logprobs, found[index][member])
            row = Row(group.prompt, *given, index, completion.trunk, completion.reference)
            if len(row.advantages) != size:
                raise UserError(f"{objective}: an advantage a token, or one for all of them")
            if weights:
                pairs = zip(row.advantages, weights, strict=True)
                paid = tuple(advantage * (weight or 0.0) for advantage, weight in pairs)
                row = replace(row, advantage=paid, sampled=completion.sampled, part=part)
            if not objective.droppable or any(row.advantages):
                rows.append(row)
    # Rows of a group share a micro-batch and its prompt; groups of similar length are near.
    rows.sort(key=lambda row: (longest[row.group], row.group))
    told = objective.signal(earned_PG).tolist() if some else []
    signal = frozenset(index for index, says in zip(kept, told, strict=True) if says)
    return Batch(tuple(rows), num_rows, num_tokens, signal)


def backward(
    session: Session, batch: Batch, references: References, heard: list[Heard] | None = None
) -> dict[str, float]:
    """Accumulate the gradient of the whole batch in the masters; returns sums for the log.

    `references` holds the reference's log-probs of each micro-batch; what is missing and
    needed is put there, so that further updates on the batch find it. A schedule that asks
    for it is shown the gradient of each group with a signal. `heard` takes the log-probs of the
    rows of this process; gradient and sums are those of all. Where memory runs out it begins anew
    with half the micro-batch, which the session keeps, and where a gradient overflows in fp16 with
    half the scale of the loss."""
    team, by_group = session.parallel, session.prepared.schedule.by_group and batch.has_signal

    def anew() -> None:
        session.optimization.begin_anew()
        references.clear()
        if heard is not None:
            heard.clear()

    def undo() -> None:
        # Others have been told of groups, or wait in a layer.
        if team.size > 1 and (by_group or team.apart(session.prepared)):
            raise UserError.of("no_group_again" if by_group else "no_pieces_again")
        anew()

    work = partial(_backward, session, batch, references, heard)
    while True:
        sums = team.summed(within_memory(session, len(batch.rows), work, undo))
        if not by_group:
            team.reduce(session.optimization.optimizer)
        if not session.optimization.overflowed(sums["loss"]):
            return sums
        anew()


def within_memory(
    session: Session, rows: int, work: Callable[[], T], undo: Callable[[], None] = lambda: None
) -> T:
    """What `work` on so many rows returns; while memory runs out, undone and with half a micro-batch."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            machine.require_out_of_memory(error)
        rows = min(session.config.batch.micro_batch, rows)
        if rows == 1:
            raise UserError.of("memory_in_training")
        undo()
        session.resize(micro_batch=rows // 2)
        machine.drop_caches()


def _backward(
    session: Session, batch: Batch, references: References, heard: list[Heard] | None
) -> dict[str, float]:
    schedule, held = session.prepared.schedule, session.optimization
    size, sampling = session.config.batch.micro_batch, session.config.sampling
    counts = Counts(batch.num_rows, batch.num_tokens, sampling.max_tokens)
    by_group = schedule.by_group and batch.has_signal
    who = session.policy, session.prepared, session.objective
    sums, total = Sums(loss=0.0, tokens=0.0), dict[str, Tensor]()
    for group in dict.fromkeys(row.group for row in batch.rows) if by_group else (-1,):
        part = replace(batch, rows=tuple(r for r in batch.rows if group in (-1, r.group)))
        for number, some in enumerate(session.parallel.micro_batches(part.rows, size)):
            known = references.get((group, number))
            told = (sums, known, heard, held.masters.scale.value)
            if not some:  # any row, which counts for nothing
                some, told = part.rows[:1], (None, known, None, 0.0)
            found = forward_backward(*who, some, counts, sampling, *told)
            if found is not None:
                references[group, number] = found
            held.masters.collect()
        if by_group:
            session.parallel.reduce(held.optimizer)
            gradients = {name: grad.detach().clone() for name, grad in held.gradients().items()}
            if part.has_signal:
                held.show_group(gradients)
            for name, grad in gradients.items():
                total[name] = grad if name not in total else total[name] + grad
            held.clear()
    for name, grad in total.items():
        held.masters.held[name].tensor.grad = grad
    return read(sums)


def optimizer_step(session: Session, loss: float, has_signal: bool = True) -> float:
    """Clip and step (`Optimization.step`); returns the norm of the gradient before clipping."""
    rate = session.present_rate
    session.counters.updates += 1
    return session.optimization.step(loss, rate, has_signal)
