"""The loop: rollout, score, advantages, log-probs, loss, step, proof, log.

It names no variant: updates, rewards, objectives and curricula are values that were
chosen before it began. All randomness comes from (seed, step), so a run that was killed
and resumed gives what the uncut run gives."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from modicum import live, machine, parallel, plan, runs, tracking
from modicum.config import Tracking, TrainConfig
from modicum.engine.logprobs import Heard
from modicum.engine.policy import check_length
from modicum.evaluate import Evaluation, evaluate
from modicum.naming import run_folder
from modicum.parts import RunParts
from modicum.plan import sizes
from modicum.rewards import StepExtras
from modicum.runs import Run
from modicum.stopping import AT_THE_ENDS, split_within
from modicum.tasks.prompts import encode
from modicum.training import metrics as log
from modicum.training import origin, rate
from modicum.training.checkpoint import save
from modicum.training.folder import begin, chose, look, resumable, sizes_kept
from modicum.training.hearing import batch_of, corrected, proxy_metrics, valued
from modicum.training.rollout import draw, probe_set, silent, work_of
from modicum.training.session import Session, notes
from modicum.training.step import References, agree_trained, backward, optimizer_step, switch
from modicum.types import Batch


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
    base and problems. Raises UserError for what cannot be done, RunStopped when a proof fails,
    RunInterrupted when a signal ends a run that has begun."""
    parts = parts or RunParts()
    config = parts.named(config)
    folder = run_folder(config)  # before the config says more than was asked for
    team = parallel.parse(config.compute.parallel).join(config.compute.device)
    observer = (observer if team.first else None) or Observer()
    note = observer.note
    with machine.Interrupts(at_once=True) as interrupts, team:
        if team.several:
            interrupts.agreed = lambda number: max(team.lines([number]))
        tracking.check(config.tracking)
        config = look(folder, config, overwrite, resume, team.first)
        if resume:
            config, parts = parts.resumed(config, folder)
            past = [folder, *past]
        if overwrite:
            origin.spare_base(config, folder)
        config, chosen = sizes.settle(config, parts)
        plan.check(config, parts)
        machine.reuse_memory()
        machine.reset_peak()
        before = psutil.Process().memory_info().rss
        session = origin.prepare_like(config, parts, past, team)
        policy = session.policy
        first = session.task.problem("train", config.seed, 0)
        first_prompt = encode(first, policy.tokenizer, config.sampling, session.examples)
        check_length([first_prompt], policy.model, config.sampling)
        # What the process held before the model was loaded; on a GPU nothing.
        start_memory = before if policy.device.type == "cpu" else 0
        began = begin(session, folder, overwrite, resume, note)
        page = live.written(folder, config.records.watch and team.first, note)
        with page as tell, began as (run, first), resumable(run), closing(policy.sampler):
            for text in [*chose(session, run, chosen), *parts.keep(run, config)]:
                note(text)
            for text in origin.notes(session, run.folder):
                note(text)
            name = run.folder.resolve().name
            tracked = config.tracking if team.first else Tracking()
            told = tracking.open(tracked, run.folder, name, asdict(config), first, note)
            with told as tracker:
                run.listeners["metrics.jsonl"] = [tracker.step, tell]
                run.listeners["evaluations.jsonl"] = [tracker.evaluated, tell]
                ended = run, *_train(session, run, first, observer, base, interrupts)
                found = team.told(lambda: log.make_result(session, *ended, start_memory, note))
                tracker.finish(found)
            run.write("result.json", found)
        return found


def _train(
    session: Session,
    run: Run,
    first: int,
    observer: Observer,
    base: Evaluation | None,
    interrupts: machine.Interrupts,
) -> tuple[dict[str, Any], str]:
    """The run from step `first` to its end: its evaluations, the change proof."""
    observer.begin(session, first)
    for text in notes(session):
        observer.note(text)
    past = runs.read_lines(run.folder / "evaluations.jsonl", optional=True)
    evaluated = {entry["name"]: entry for entry in past}
    # By the file, which has those before the first checkpoint too.
    spent = [entry["generated"] for entry in evaluated.values() if "generated" in entry]
    session.policy.ledger["evaluate"] = {
        key: sum(of[key] for of in spent) for key in ("completions", "tokens")
    }
    if "base" not in evaluated:
        evaluated["base"] = _evaluate(session, run, observer, "base", -1, base)
    done, due = first, f"step {first}" not in evaluated
    try:
        if due:
            _evaluate_within(session, run, observer, done)
        while not session.ended(done):
            with interrupts.whole():
                with sizes_kept(session, run, observer.note, done):
                    metrics = run_step(session, run, done, observer)
                observer.step(metrics)
                _look(session, observer)
                done += 1
            _evaluate_within(session, run, observer, done)
            with interrupts.whole():
                every = session.config.records.checkpoint_every
                if session.ended(done) or (every and done % every == 0):
                    session.prove(f"step {done}")
                    save(session, run, done)
    except machine.Stopped:
        saved = runs.checkpoints(run.folder)[-1:] == [run.checkpoint(done)]
        if done > first and not saved and not interrupts.torn:
            save(session, run, done)
        raise
    if session.stop.reason:
        observer.note(f"stopped after step {done}: {session.stop.reason}")
    proof = session.prove("end of the run")
    if "trained" not in evaluated:
        evaluated["trained"] = _evaluate(session, run, observer, "trained", done - 1, None)
    elif session.config.records.anatomy:
        observer.note("all but the anatomy is done; --resume --no-anatomy ends without it")
    return evaluated, proof


def _evaluate(
    session: Session, run: Run, observer: Observer, name: str, step: int, known: Evaluation | None
) -> dict[str, Any]:
    """Evaluate the current policy, unless the result is known, and log it."""
    if session.config.evaluation.eval_problems == 0:
        return {}
    ledger = session.policy.ledger
    before = dict(ledger["evaluate"])
    with sizes_kept(session, run, observer.note, step + 1):
        found = known or measured(session, run, observer, name)
    spent = {key: count - before[key] for key, count in ledger["evaluate"].items()}
    # Of the first process: a check by algebra that takes too long may end otherwise elsewhere.
    entry = session.parallel.told(
        lambda: {"step": step, "name": name, "generated": spent, **asdict(found)}
    )
    run.append("evaluations.jsonl", entry)
    session.stop.evaluated(entry)
    observer.evaluated(name, found)
    return entry


def measured(session: Session, run: Run, observer: Observer, name: str) -> Evaluation:
    """The evaluation of the current policy that the config asks for, by the name of its time."""
    config, held = session.config, session.config.evaluation
    split = held.eval_split if name in AT_THE_ENDS else split_within(config.budget, held)
    what = session.policy, session.task, config.sampling, split
    progress = partial(observer.evaluating, name)
    keep = partial(run.write_lines, f"completions-{name.replace(' ', '-')}.jsonl")
    size = {"num_problems": held.eval_problems, "samples": held.eval_samples}
    return evaluate(*what, **size, progress=progress, keep=keep, examples=session.examples)


def run_step(
    session: Session, run: Run, step: int, observer: Observer | None = None
) -> dict[str, float]:
    """One rollout and its optimizer steps; returns and logs the metrics."""
    probed = probe_set(session, step)
    watch, faults = machine.Stopwatch(), list[str]()
    note = (observer or Observer()).note
    decided = switch(session)
    if decided is not None:
        run.append("decisions.jsonl", {"step": step, **decided})
    extras = StepExtras(step, session.config.steps)
    rollout = draw(session, step, extras, faults, watch)
    if faults:
        note(f"step {step + 1}: {len(faults)} scores failed and are 0 ({faults[0]})")
    session.order.observe(rollout.seen())
    trained, apart = corrected(session, rollout)
    if session.critic is not None:
        trained = valued(session, session.critic, trained)
    # What was logged of completions goes by the objects that were drawn.
    rollout = rollout._replace(taken=trained.taken)
    batch = batch_of(session, trained.groups, trained.rewards_PG, trained.taken)
    if apart.get("sampler/rejected_rows") == 1:
        how = f"{apart['sampler/mismatch_mean']:.2g} nats a token between sampler and trainer"
        session.silence = f"the correction {session.correction} rejects all completions, for {how}"
        note(f"step {step + 1}: {session.silence}")
    elif not batch.has_signal and (text := silent(session, rollout)):
        note(text)
    metrics = log.rollout_metrics(step, rollout) | extras.metrics() | probed
    metrics |= proxy_metrics(session, rollout, extras) | apart | session.policy.sampler.metrics()
    watch.lap("scoring")
    if batch.rows and rate.settle(session, run, rollout.groups, batch, note):
        metrics |= _update(session, batch, note)
        # That of a mean over groups with a signal alone, which sees no other.
        share = len(batch.signal) / rollout.divisor
        metrics["policy/effective_rate"] = metrics["policy/learning_rate"] * share
    session.counters.empty_steps += not batch.rows
    watch.lap("training")
    work, team = work_of(session, trained, batch), session.parallel
    session.count(rollout.tokens, work.total, team.told(lambda: watch.total))
    metrics |= session.order.metrics() | log.run_metrics(session, rollout, len(faults), work, watch)
    metrics = team.told(lambda: metrics)
    run.append("metrics.jsonl", metrics)
    lost = session.optimization.lost(metrics.get("update/arrived"))
    if lost:
        note(lost)
    session.stop.step(metrics)
    log.write_samples(session, run, step, rollout, extras)
    return metrics


def _update(session: Session, batch: Batch, note: Callable[[str], None]) -> dict[str, float]:
    """The optimizer steps on one batch; metrics of the last one."""
    references: References = {}
    metrics: dict[str, float] = {}
    for number in range(session.config.batch.updates_per_rollout):
        given = session.present_rate
        heard: list[Heard] = []
        with session.parallel.divided(session.prepared, session.optimization.masters):
            sums = backward(session, batch, references, heard)
            norm = optimizer_step(session, sums["loss"], batch.has_signal)
        session.policy.follow(session.prepared)
        if number == 0:  # now that layers are whole, should it ask how much they round
            agree_trained(session, heard)
        first = session.counters.optimizer_steps == 1 and given and heard
        if first and (told := rate.far_off(session, heard, given)):
            note(told)
        metrics = log.training_metrics(sums)
        metrics |= {"policy/grad_norm": norm, "policy/learning_rate": given}
    return metrics


def _look(session: Session, observer: Observer) -> None:
    counters = session.counters
    if counters.optimizer_steps and not counters.checked_first:
        found = session.prove("first step")
        idle = session.prepared.active.keys() - session.proof.tried
        # Of an adapter whose other half begins at 0.
        half = f" ({len(idle)} have no gradient while what they are multiplied with is 0)"
        observer.note(f"change proof after the first step: {found}{half * bool(idle)}")
        counters.checked_first = True


def _evaluate_within(session: Session, run: Run, observer: Observer, done: int) -> None:
    every = session.config.evaluation.eval_every
    if every and done and done % every == 0 and not session.ended(done):
        _evaluate(session, run, observer, f"step {done}", done - 1, None)
