"""What a step logs, and `samples.jsonl`: what the model wrote, with prompts and rewards.

Every key of a metric is explained in docs/metrics.md; a test keeps that complete.

And what a run ends with: `result.json`, and `anatomy.json` with what changed in every tensor. The first
says that the run is finished, so it comes last and once: a run that is killed before has only its end to
do again."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from modicum import anatomy, machine, runs
from modicum.engine.flops import StepFlops
from modicum.models.adapters import merged
from modicum.models.load import load
from modicum.objectives.parts import has_signal
from modicum.plan.shapes import rested
from modicum.rewards import StepExtras
from modicum.tracking import Note
from modicum.training.rollout import Rollout, untrained
from modicum.training.session import Session
from modicum.types import FolderError, UserError

KEPT = {"reward": "reward/mean", "accuracy": "reward/accuracy"}
KEPT |= {"length": "completions/length_mean", "truncated": "completions/truncated"}
"""What is also logged of the groups that are trained."""
MEANS = {"kl": "kl", "entropy": "entropy", "clip_fraction": "clipped", "ratio_error": "ratio_error"}
SAMPLES = "samples.jsonl"
THIN = 10  # once the file is large, of so many steps that are due one is written
SETTINGS = ("update", "model", "task", "reward", "objective", "seed")
COUNTED = ("optimizer_bytes", "decisions", "generated_tokens", "ledger", "empty_steps", "flops")


def rollout_metrics(step: int, rollout: Rollout) -> dict[str, float]:
    """Metrics of the sampled completions, with one `reward/` key a term.

    NaN is no verdict and left out of means; a term without any verdict has no key. They are of all
    groups that were drawn; `kept/` ones are of those that are trained, where some may be left out."""
    groups, scores, rewards_PG = rollout[:3]
    completions = [c for group in groups for c in group.completions]
    flat = [s for row in scores for s in row]
    verdicts = {n: [s[n] for s in flat if not math.isnan(s[n])] for n in flat[0]}
    lengths = [len(c.tokens) for c in completions]
    different = {(g.problem.id, c.tokens) for g in groups for c in g.completions}
    terms = {f"reward/{name}": sum(known) / len(known) for name, known in verdicts.items() if known}
    return {
        "step": step,
        "reward/mean": float(rewards_PG.nanmean().nan_to_num(0.0)),
        **terms,
        "completions/length_mean": sum(lengths) / len(lengths),
        "completions/length_max": max(lengths),
        "completions/truncated": sum(not c.finished for c in completions) / len(completions),
        "completions/distinct": len(different) / len(completions),
        "groups/no_signal": float((~has_signal(rewards_PG)).float().mean()),
        "groups/signal": sum(rollout.signals) / len(groups),
    }


def kept_metrics(rollout: Rollout) -> dict[str, float]:
    """What was drawn and kept of a step's groups, and how the kept ones differ from all."""
    kept = rollout.kept
    found: dict[str, float] = {
        "groups/drawn": len(rollout.groups),
        "groups/rounds": len(rollout.rounds),
        "groups/kept": len(kept),
    }
    if kept:
        found["groups/factor"] = len(rollout.groups) / rollout.divisor
        of_kept = rollout_metrics(0, rollout.part(kept))
        found |= {f"kept/{name}": of_kept[key] for name, key in KEPT.items() if key in of_kept}
    return found


def training_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the last update: sums over tokens become means."""
    found = {f"policy/{name}": sums[key] / sums["tokens"] for name, key in MEANS.items()}
    return {"policy/loss": sums["loss"], **found}


def run_metrics(
    session: Session, rollout: Rollout, faults: int, work: StepFlops, watch: machine.Stopwatch
) -> dict[str, float]:
    """Metrics of what the step cost and of the run so far."""
    counters, selects = session.counters, session.choice.selects
    left = sum(counters.ledger.get(name, {}).get("tokens", 0) for name in ("rejected", "surplus"))
    arrived = session.optimization.arrived()
    return {
        "reward/errors": faults,
        "policy/skipped_steps": counters.skipped,
        "update/active_parameters": session.active_parameters,
        **({} if arrived is None else {"update/arrived": arrived}),
        **(kept_metrics(rollout) | {"tokens/rejected": left} if selects else {}),
        "groups/empty_steps": counters.empty_steps,
        "tokens/generated": counters.generated_tokens,
        "flops/sampling": work.sampling,
        "flops/training": work.training,
        **(session.critic.metrics | {"flops/critic": work.critic} if session.critic else {}),
        "flops/total": counters.flops,
        "time/step_seconds": watch.total,
        **{f"time/{n}_seconds": watch.seconds[n] for n in ("sampling", "training", "agreement")},
        "time/tokens_per_second": rollout.tokens / watch.total,
        "memory/peak_bytes": machine.peak_bytes(),
    }


def write_samples(
    session: Session, run: runs.Run, step: int, rollout: Rollout, extras: StepExtras
) -> None:
    """Every completion of a step that is due, fewer once the file is large; and of the last step."""
    records, path = session.config.records, run.folder / SAMPLES
    # By the file alone, which a resumed run has cut: it goes on as the uncut one does.
    full = path.exists() and path.stat().st_size >= records.samples_mib * 2**20
    due = step % (records.samples_every * (THIN if full else 1)) == 0
    if not due and not session.ended(step + 1):
        return
    groups, scores, rewards_PG = rollout[:3]
    lines, shown, totals_PG = [], groups[: 1 if full else None], rewards_PG.tolist()
    for number, (group, row, totals) in enumerate(zip(shown, scores, totals_PG, strict=False)):
        kept = {"kept": number in rollout.kept} if session.choice.selects else {}
        problem, prompt = group.problem, session.policy.tokenizer.decode(list(group.prompt))
        for member, completion in enumerate(group.completions):
            line = {
                **{"step": step, "id": problem.id, "question": problem.question, "prompt": prompt},
                **{"gold": problem.answer, "member": member, "completion": completion.text},
                **{"tokens": len(completion.tokens), "finished": completion.finished},
                "reward": _known(totals[member]),
                "scores": {name: _known(value) for name, value in row[member].items()},
                **kept,
            }
            lines.append(line | extras.logged(completion) | ({} if due else {"end": True}))
    run.extend(SAMPLES, lines)


def _known(value: float) -> float | None:
    """No verdict is null, JSON has no NaN."""
    return None if math.isnan(value) else value


def make_result(
    session: Session, run: runs.Run, evaluated: dict[str, Any], proof: str, memory: int, note: Note
) -> dict[str, Any]:
    """What `result.json` will hold; writes `anatomy.json`. The session is spent afterwards. `memory`
    is what the process held before."""
    config, counters = session.config, session.counters
    proofs = session.agreement.report(), session.policy.sampler.proven
    found = {
        **{name: getattr(config, name) for name in SETTINGS},
        "steps": counters.rollouts,
        "stopped": session.stop.reason,
        "base": evaluated["base"] or None,
        "trained": evaluated["trained"] or None,
        "trainable_parameters": session.trainable_parameters,
        "total_parameters": session.total_parameters,
        "trainable_tensors": len(session.prepared.trainable),
        "active_parameters_mean": counters.active_sum
        / max(1, counters.optimizer_steps - counters.skipped),
        **{name: getattr(counters, name) for name in (*COUNTED, "agreement_max")},
        "seconds": counters.trained_seconds,
        "peak_memory_bytes": machine.peak_bytes(),
        "start_memory_bytes": memory,
        "skipped_steps": counters.skipped,
        "change_proof": proof,
        "agreement_proof": "; ".join(filter(None, proofs)),
        "base_hash": session.identity.hashes["base_hash"],
        "nothing_trained": untrained(session),
    }
    if config.records.anatomy:
        try:
            found["anatomy"] = _anatomy(session, run, note)
        except (MemoryError, RuntimeError, UserError) as error:
            if isinstance(error, FolderError):
                raise
            why = (str(error) or type(error).__name__).splitlines()[0][:200]
            note(f"the run has no anatomy: {why}")
    return found


def _anatomy(session: Session, run: runs.Run, note: Note) -> dict[str, Any]:
    """Compare the policy with the base, loaded again; the parts to `anatomy.json`."""
    config, rank = session.config, getattr(session.prepared.adapter, "rank", None)
    # On the CPU, since merging makes the model fp32 and the base comes on top.
    session.policy.model.to("cpu")
    policy = session.prepared.merged()
    given = config.model, "cpu", config.compute.dtype, config.trust, config.base
    base = load(*given, rested(config, session.update))
    base.identity.require(
        session.identity.bare.hashes, f"{run.folder} was trained on", config.model
    )
    changes = anatomy.measure(policy, merged(base.model), session.policy.device)
    tensors = [asdict(change) for change in changes]
    run.write("anatomy.json", {"dtype": config.compute.dtype, "tensors": tensors})
    logged = runs.read_lines(run.folder / "metrics.jsonl", optional=True)
    if told := anatomy.alarm(changes, rank, [line["reward/mean"] for line in logged]):
        note(told)
    return {**anatomy.summary(changes, config.compute.dtype), "alarm": told}
