"""The loop: rollout, score, advantages, log-probs, loss, step, proof, log.

It names no variant: updates, rewards, objectives and curricula are values that were
chosen before it began. All randomness comes from (seed, step), so a run that was killed
and resumed gives what the uncut run gives.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from modicum import machine, plan, result, runs, tasks, tracking
from modicum.config import TrainConfig
from modicum.engine import LibraryEngine, agreement
from modicum.evaluate import Evaluation, evaluate
from modicum.metrics import rollout_metrics, sample, training_metrics
from modicum.models.precision import too_fine
from modicum.resume import begin
from modicum.session import Session, prepare, save
from modicum.step import (
    References,
    backward,
    make_batch,
    optimizer_step,
    rate_at,
    sample_groups,
    score,
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
) -> dict[str, Any]:
    """Train as `config` says and return what `result.json` holds.

    `overwrite` replaces the run folder, `resume` goes on from its last checkpoint. `base`
    is the evaluation of the untrained model, if it is known already. Raises UserError for
    what cannot be done and RunStopped when a proof fails.
    """
    observer = observer or Observer()
    tracking.check(config.tracking)
    plan.check(config)
    machine.reuse_memory()
    machine.reset_peak()
    before = machine.resident_bytes()
    session = prepare(config)
    if session.loaded.device.type == "cpu":
        session.start_memory_bytes = before
    run, first = begin(session, overwrite, resume)
    with tracking.open(
        config.tracking, run.folder, run.folder.resolve().name, asdict(config), first, observer.note
    ) as tracker:
        run.listeners = {"metrics.jsonl": tracker.step, "evaluations.jsonl": tracker.evaluated}
        found = _train(session, run, first, observer, base)
        tracker.finish(found)
    return found


def _train(
    session: Session, run: runs.Run, first: int, observer: Observer, base: Evaluation | None
) -> dict[str, Any]:
    """The run from step `first` to its result."""
    config = session.config
    observer.begin(session, first)
    for text in [*tasks.notes(session.task), *session.prepared.notes]:
        observer.note(text)
    if config.compute.engine == "auto" and isinstance(session.engine, LibraryEngine):
        name = session.loaded.model.config.model_type  # type: ignore[union-attr]
        observer.note(
            f"the engine does not know the architecture {name!r}: its own forward is used, with"
            " prompts repeated for every completion and frozen layers run every time"
        )
    fine = too_fine(session.prepared.trainable, session.learning_rate)
    if fine:
        observer.note(
            f"a step of {session.learning_rate:g} is below the spacing of {len(fine)} tensors"
            f" in their dtype (first: {fine[0]}); what they learn may be rounded away"
        )
    evaluated = {e["name"]: e for e in _past_evaluations(run)}
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
    return result.write(session, run, evaluated, proof, done)


def _past_evaluations(run: runs.Run) -> list[dict[str, Any]]:
    path = run.folder / "evaluations.jsonl"
    return runs.read_lines(path) if path.exists() else []


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
        session.engine,
        session.loaded,
        session.task,
        config.sampling,
        held.eval_split,
        num_problems=held.eval_problems,
        samples=held.eval_samples,
        rollout_batch=config.batch.rollout_batch,
        progress=lambda done, total: observer.evaluating(name, done, total),
        keep=lambda rows: run.write_lines(f"completions-{name.replace(' ', '-')}.jsonl", rows),
    )
    entry = {"step": step, "name": name, **found.to_json()}
    run.append("evaluations.jsonl", entry)
    observer.evaluated(name, found)
    return entry


def run_step(
    session: Session, run: runs.Run, step: int, observer: Observer | None = None
) -> dict[str, float]:
    """One rollout and its optimizer steps; returns and logs the metrics."""
    faults: list[str] = []
    began = time.perf_counter()
    decided = switch(session)
    if decided is not None:
        run.append("decisions.jsonl", {"step": step, **decided})
    groups = sample_groups(session, step)
    sampled = time.perf_counter()
    every = session.config.compute.agreement_every
    if every and step % every == 0:
        model, settings = session.prepared.model, session.config.sampling
        found = agreement.compare(model, session.loaded.device, groups, settings)
        _agree(session, found, "library")
    compared = time.perf_counter()
    scores = score(session, groups, faults)
    if faults and observer:
        observer.note(f"step {step + 1}: {len(faults)} scores failed and are 0 ({faults[0]})")
    totals_PG = torch.tensor([[session.reward.total(s) for s in row] for row in scores])
    batch = make_batch(session, groups, totals_PG)
    metrics = rollout_metrics(step, groups, scores, totals_PG)
    scored = time.perf_counter()
    if batch.rows:
        metrics |= _update(session, batch)
    ended = time.perf_counter()
    before = session.spent
    session.generated_tokens += batch.num_tokens
    session.trained_seconds += ended - began
    work = session.counter.step(groups, batch, session.config.batch.updates_per_rollout)
    session.flops += work.total
    session.last_spent = session.spent - before
    metrics |= {
        "reward/errors": len(faults),
        "policy/skipped_steps": session.skipped,
        "update/active_parameters": session.active_parameters,
        "tokens/generated": session.generated_tokens,
        "flops/sampling": work.sampling,
        "flops/training": work.training,
        "flops/total": session.flops,
        "time/step_seconds": ended - began,
        "time/sampling_seconds": sampled - began,
        "time/training_seconds": ended - scored,
        "time/agreement_seconds": compared - sampled,
        "time/tokens_per_second": batch.num_tokens / (ended - began),
        "memory/peak_bytes": machine.peak_bytes(),
    }
    run.append("metrics.jsonl", metrics)
    if step % session.config.records.samples_every == 0 or session.ended(step + 1):
        _write_samples(session, run, step, groups[0], scores[0])
    return metrics


def _update(session: Session, batch: Batch) -> dict[str, float]:
    """The optimizer steps on one batch; metrics of the last one."""
    references: References = {}
    metrics: dict[str, float] = {}
    for number in range(session.config.batch.updates_per_rollout):
        rate = rate_at(session)
        sums = backward(session, batch, references)
        if number == 0:
            _agree(session, sums["difference"] / sums["tokens"], "trainer")
        norm = optimizer_step(session, sums["loss"], batch.has_signal)
        metrics = training_metrics(sums)
        metrics |= {"policy/grad_norm": norm, "policy/learning_rate": rate}
    return metrics


def _agree(session: Session, mean: float, by: str) -> None:
    """The agreement proof, for a mean difference of log-probs."""
    session.agreement_max = max(session.agreement_max, mean)
    agreement.require(mean, session.config.compute.dtype, by)


def _write_samples(
    session: Session, run: runs.Run, step: int, group: Group, scores: list[dict[str, float]]
) -> None:
    for completion, found in zip(group.completions[:4], scores, strict=False):
        total = session.reward.total(found)
        run.append("samples.jsonl", sample(step, group.problem, completion.text, found, total))


def _after(session: Session, run: runs.Run, observer: Observer, step: int) -> None:
    """What is due after a step: the change proof, a checkpoint, an evaluation."""
    config, done = session.config, step + 1
    if session.optimizer_steps and not session.checked_first:
        observer.note("change proof after the first step: " + session.proof.check("first step"))
        session.checked_first = True
    if done == NO_SIGNAL_STEPS and not (session.optimizer_steps or session.signal_steps):
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
