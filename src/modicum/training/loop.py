"""The loop: rollout, score, advantages, log-probs, loss, step, proof, log.

It names no variant: updates, rewards, objectives and curricula are values that were
chosen before it began. All randomness comes from (seed, step), so a run that was killed
and resumed gives what the uncut run gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from modicum import machine, plan, runs, tasks, tracking
from modicum.config import TrainConfig
from modicum.engine import agreement
from modicum.engine.backward import Heard
from modicum.engine.policy import check_length
from modicum.engine.version import require_origin
from modicum.evaluate import Evaluation, evaluate
from modicum.models.load import inner
from modicum.models.precision import loses_steps, too_fine
from modicum.parts import RunParts
from modicum.tasks.prompts import encode
from modicum.training import origin, result
from modicum.training.checkpoint import save
from modicum.training.folder import begin, run_folder
from modicum.training.metrics import rollout_metrics, run_metrics, sample, training_metrics
from modicum.training.session import Session
from modicum.training.step import (
    References,
    backward,
    make_batch,
    optimizer_step,
    rate_at,
    sample_groups,
    score,
    seen,
    switch,
)
from modicum.types import Batch, Group, RunInterrupted

NO_SIGNAL_STEPS = 10  # steps without any signal before the user is told


class Observer:
    """Is told what happens during a run; this one does nothing with it."""

    def begin(self, session: Session, first_step: int) -> None:
        """The run is set up; nothing has been trained yet."""

    def step(self, metrics: dict[str, float]) -> None:
        """A step has ended."""

    def evaluating(self, name: str, done: int, total: int) -> None:
        """`done` of `total` problems of an evaluation have been answered."""

    def evaluated(self, name: str, found: Evaluation) -> None:
        """An evaluation has ended; `name` is base, trained or the step."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


def train(
    config: TrainConfig,
    observer: Observer | None = None,
    overwrite: bool = False,
    resume: bool = False,
    base: Evaluation | None = None,
    parts: RunParts | None = None,
    past: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train as `config` says and return what `result.json` holds.

    `overwrite` replaces the run folder, `resume` goes on from its last checkpoint. `base`
    is the evaluation of the untrained model, if it is known already. `parts` are objects in
    the place of the config's expressions. `past` are folders of runs that began with the same
    base and problems. Raises UserError for what cannot be done and
    RunStopped when a proof fails.
    """
    observer, parts = observer or Observer(), parts or RunParts()
    config = parts.named(config)
    if resume:
        config, parts = parts.resumed(config, run_folder(config))
        past = [run_folder(config), *past]
    if overwrite:
        origin.spare_base(config, run_folder(config))
    tracking.check(config.tracking)
    if parts.update is parts.objective is None:  # the planner reads expressions
        plan.check(config)
    machine.reuse_memory()
    machine.reset_peak()
    before = machine.resident_bytes()
    session = origin.prepare_like(config, parts, past)
    policy = session.policy
    first_prompt = encode(
        session.task.problem("train", config.seed, 0), policy.tokenizer, config.sampling
    )
    check_length([first_prompt], policy.model, config.sampling)
    # What the process held before the model was loaded; on a GPU nothing.
    start_memory = before if policy.device.type == "cpu" else 0
    run, first = begin(session, overwrite, resume)
    for text in [*parts.keep(run, config), *origin.notes(session, run.folder)]:
        observer.note(text)
    with tracking.open(
        config.tracking, run.folder, run.folder.resolve().name, asdict(config), first, observer.note
    ) as tracker:
        run.listeners = {"metrics.jsonl": tracker.step, "evaluations.jsonl": tracker.evaluated}
        steps, evaluated, proof = _train(session, run, first, observer, base)
        found = result.write(session, run, evaluated, proof, steps, start_memory)
        tracker.finish(found)
    return found


def _train(
    session: Session, run: runs.Run, first: int, observer: Observer, base: Evaluation | None
) -> tuple[int, dict[str, Any], str]:
    """The run from step `first` to its end: its steps, its evaluations, the change proof."""
    config = session.config
    observer.begin(session, first)
    known = [*session.prepared.notes, *session.policy.scorer.notes]
    for text in [*tasks.notes(session.task), *known]:
        observer.note(text)
    if config.compute.engine == "auto" and not session.policy.scorer.splits:
        name = inner(session.policy.model).config.model_type
        observer.note(
            f"the engine does not know the architecture {name!r}: its own forward is used, with"
            " prompts repeated for every completion and frozen layers run every time"
        )
    rounding, trainable = config.compute.rounding, session.prepared.trainable
    lossy = {name: p for name, p in trainable.items() if loses_steps(p, rounding)}
    fine = too_fine(lossy, session.learning_rate)
    if fine:
        observer.note(
            f"a step of {session.learning_rate:g} is below the spacing of {len(fine)} tensors"
            f" in their dtype (first: {fine[0]}); what they learn may be rounded away"
        )
    past = run.folder / "evaluations.jsonl"
    evaluated = {e["name"]: e for e in (runs.read_lines(past) if past.exists() else ())}
    if "base" not in evaluated:
        evaluated["base"] = _evaluate(session, run, observer, "base", -1, base)
    with machine.Interrupts() as interrupts:
        done = first
        while not session.ended(done):
            observer.step(run_step(session, run, done, observer))
            _after(session, run, observer, done)
            done += 1
            if interrupts.asked and not session.ended(done):
                save(session, run, done)
                raise RunInterrupted(f"interrupted after step {done}; --resume goes on from there")
    proof = session.proof.check("end of the run")
    if "trained" not in evaluated:
        evaluated["trained"] = _evaluate(session, run, observer, "trained", done - 1, None)
    return done, evaluated, proof


def _evaluate(
    session: Session,
    run: runs.Run,
    observer: Observer,
    name: str,
    step: int,
    known: Evaluation | None,
) -> dict[str, Any]:
    """Evaluate the current policy, unless the result is known, and log it."""
    config = session.config
    held = config.evaluation
    if held.eval_problems == 0:
        return {}
    found = known or evaluate(
        session.policy,
        session.task,
        config.sampling,
        held.eval_split,
        num_problems=held.eval_problems,
        samples=held.eval_samples,
        progress=lambda done, total: observer.evaluating(name, done, total),
        keep=lambda rows: run.write_lines(f"completions-{name.replace(' ', '-')}.jsonl", rows),
    )
    entry = {"step": step, "name": name, **asdict(found)}
    run.append("evaluations.jsonl", entry)
    observer.evaluated(name, found)
    return entry


def run_step(
    session: Session, run: runs.Run, step: int, observer: Observer | None = None
) -> dict[str, float]:
    """One rollout and its optimizer steps; returns and logs the metrics."""
    watch, faults = machine.Stopwatch(), list[str]()
    decided = switch(session)
    if decided is not None:
        run.append("decisions.jsonl", {"step": step, **decided})
    groups = sample_groups(session, step)
    watch.lap("sampling")
    _agree(session, groups, step)
    watch.lap("agreement")
    scores, rewards_PG = score(session.task, session.reward, groups, faults)
    if faults and observer:
        observer.note(f"step {step + 1}: {len(faults)} scores failed and are 0 ({faults[0]})")
    session.order.observe(seen(groups, scores, rewards_PG))
    batch = make_batch(session.objective, groups, rewards_PG)
    metrics = rollout_metrics(step, groups, scores, rewards_PG)
    watch.lap("scoring")
    if batch.rows:
        metrics |= _update(session, batch)
    watch.lap("training")
    work = session.flops.step(groups, batch, session.config.batch.updates_per_rollout)
    session.count(batch.num_tokens, work.total, watch.total)
    metrics |= session.order.metrics() | run_metrics(session, batch, len(faults), work, watch)
    run.append("metrics.jsonl", metrics)
    lost = session.optimization.lost(metrics.get("update/arrived"))
    if observer and lost:
        observer.note(lost)
    if step % session.config.records.samples_every == 0 or session.ended(step + 1):
        _write_samples(session, run, step, groups[0], scores[0])
    return metrics


def _update(session: Session, batch: Batch) -> dict[str, float]:
    """The optimizer steps on one batch; metrics of the last one."""
    references: References = {}
    metrics: dict[str, float] = {}
    for number in range(session.config.batch.updates_per_rollout):
        rate = rate_at(session)
        heard: list[Heard] = []
        sums = backward(session, batch, references, heard)
        if number == 0:
            _trained(session, heard)
        norm = optimizer_step(session, sums["loss"], batch.has_signal)
        session.policy.follow(session.prepared)
        metrics = training_metrics(sums)
        metrics |= {"policy/grad_norm": norm, "policy/learning_rate": rate}
    return metrics


def _agree(session: Session, groups: list[Group], step: int) -> None:
    """The agreement proof of fresh completions."""
    proof, policy, sampling = session.agreement, session.policy, session.config.sampling
    require_origin(groups, sampling, policy.changed.version)
    if proof.due(step):
        session.agreed(proof.check(policy, session.prepared, groups, sampling, step))
    if proof.due(step + 1):
        proof.remember(session.prepared)


def _trained(session: Session, heard: list[Heard]) -> None:
    """The agreement proof of the log-probs that were trained with."""
    rows = [row for part, *_ in heard for row in part]
    trainer_N = agreement.as_array(torch.cat([policy_N for _, policy_N, _ in heard]))
    entropy_N = agreement.as_array(torch.cat([found_N for *_, found_N in heard]))
    session.agreed(session.agreement.trained(rows, trainer_N, entropy_N))


def _write_samples(
    session: Session, run: runs.Run, step: int, group: Group, scores: list[dict[str, float]]
) -> None:
    for completion, found in zip(group.completions[:4], scores, strict=False):
        total = session.reward.total(found)
        run.append("samples.jsonl", sample(step, group.problem, completion.text, found, total))


def _after(session: Session, run: runs.Run, observer: Observer, step: int) -> None:
    """What is due after a step: the change proof, a checkpoint, an evaluation."""
    config, done = session.config, step + 1
    counters = session.counters
    if counters.optimizer_steps and not counters.checked_first:
        observer.note("change proof after the first step: " + session.proof.check("first step"))
        counters.checked_first = True
    if done == NO_SIGNAL_STEPS and not (counters.optimizer_steps or counters.signal_steps):
        last = runs.read_lines(run.folder / "samples.jsonl")[-1]
        observer.note(
            f"in {done} steps all rewards within a group were equal, so nothing was trained."
            f" Gold {last['gold']!r}, scores {last['scores']}, completion {last['completion']!r}"
        )
    every = config.evaluation.eval_every
    if every and done % every == 0 and not session.ended(done):
        _evaluate(session, run, observer, f"step {done}", step, None)
    every = config.records.checkpoint_every
    if session.ended(done) or (every and done % every == 0):
        session.proof.check(f"step {done}")
        save(session, run, done)
