"""The loop: rollout, score, advantages, log-probs, loss, step, proof, log.

It names no variant: updates, rewards, objectives and curricula are values that were
chosen before it began. All randomness comes from (seed, step), so a run that was killed
and resumed gives what the uncut run gives.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from modicum import machine, result, runs, tasks
from modicum.config import TrainConfig, from_mapping, read_toml, to_toml
from modicum.engine import LibraryEngine, agreement
from modicum.evaluate import Evaluation, evaluate
from modicum.metrics import rollout_metrics, sample, training_metrics
from modicum.models.precision import too_fine
from modicum.session import Session, prepare, restore, save
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
from modicum.types import Batch, Group, RunInterrupted, UserError

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
    machine.reuse_memory()
    machine.reset_peak()
    session = prepare(config)
    run, first = _open(session, overwrite, resume)
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
        for step in range(first, config.steps):
            observer.step(run_step(session, run, step, observer))
            _after(session, run, observer, step)
            if interrupts.asked and step + 1 < config.steps:
                save(session, run, step + 1)
                raise RunInterrupted(
                    f"interrupted after step {step + 1}; --resume goes on from there"
                )
    finished = config.steps - 1
    proof = session.proof.check("end of the run")
    if "trained" not in evaluated:
        evaluated["trained"] = _evaluate(session, run, observer, "trained", finished, None)
    return result.write(session, run, evaluated, proof)


def _open(session: Session, overwrite: bool, resume: bool) -> tuple[runs.Run, int]:
    """The run folder and the step to begin with."""
    config = session.config
    folder = run_folder(config)
    if not resume:
        run = runs.Run.create(folder, to_toml(config), overwrite)
        run.write("environment.json", machine.environment())
        return run, 0
    run = runs.open_run(folder)
    if (folder / "result.json").exists():
        raise UserError(f"{folder} holds a finished run; --overwrite starts anew")
    past = from_mapping(TrainConfig, read_toml(folder / "config.toml"), str(folder / "config.toml"))
    # The folder may have been moved, or be named in another way now.
    old, new = (to_toml(replace(c, out="")).splitlines() for c in (past, config))
    if old != new:
        changed = next((a for a, b in zip(old, new, strict=False) if a != b), "")
        raise UserError(
            f"{folder} was begun with other settings ({changed.strip()}); it cannot go on"
        )
    saved = runs.checkpoints(folder)
    first = restore(session, saved[-1]) if saved else 0
    run.cut(first)
    return run, first


def run_folder(config: TrainConfig) -> Path:
    """The folder that the config names, or one under runs/ made from update and seed."""
    if config.out:
        return Path(config.out)
    name = "".join(c if c.isalnum() else "-" for c in config.update).strip("-")
    return Path("runs") / f"{name}-seed{config.seed}"


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
    session.generated_tokens += batch.num_tokens
    session.trained_seconds += ended - began
    metrics |= {
        "reward/errors": len(faults),
        "policy/skipped_steps": session.skipped,
        "update/active_parameters": session.active_parameters,
        "time/step_seconds": ended - began,
        "time/sampling_seconds": sampled - began,
        "time/training_seconds": ended - scored,
        "time/agreement_seconds": compared - sampled,
        "time/tokens_per_second": batch.num_tokens / (ended - began),
        "memory/peak_bytes": machine.peak_bytes(),
    }
    run.append("metrics.jsonl", metrics)
    if step % session.config.records.samples_every == 0 or step + 1 == session.config.steps:
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
    if every and done % every == 0 and done < config.steps:
        _evaluate(session, run, observer, f"step {done}", step, None)
    every = config.records.checkpoint_every
    if done == config.steps or (every and done % every == 0):
        session.proof.check(f"step {done}")
        save(session, run, done)
