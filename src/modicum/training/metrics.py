"""What a step logs, and `samples.jsonl`: what the model wrote, with prompts and rewards.

Every key of a metric is explained in docs/metrics.md; a test keeps that complete.
"""

import math
from collections.abc import Mapping

from modicum import machine, runs
from modicum.engine.flops import StepFlops
from modicum.objectives.parts import has_signal
from modicum.rewards import StepExtras
from modicum.training.rollout import Rollout
from modicum.training.session import Session

KEPT = {"reward": "reward/mean", "accuracy": "reward/accuracy"}
KEPT |= {"length": "completions/length_mean", "truncated": "completions/truncated"}
"""What is also logged of the groups that are trained."""
SAMPLES = "samples.jsonl"
THIN = 10  # once the file is large, of so many steps that are due one is written


def rollout_metrics(step: int, rollout: Rollout) -> dict[str, float]:
    """Metrics of the sampled completions, with one `reward/` key a term.

    NaN is no verdict and left out of means; a term without any verdict has no key. They are of all
    groups that were drawn; `kept/` ones are of those that are trained, where some may be left out.
    """
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
    tokens = sums["tokens"]
    return {
        "policy/loss": sums["loss"],
        "policy/kl": sums["kl"] / tokens,
        "policy/entropy": sums["entropy"] / tokens,
        "policy/clip_fraction": sums["clipped"] / tokens,
        "policy/ratio_error": sums["ratio_error"] / tokens,
    }


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
        "time/sampling_seconds": watch.seconds["sampling"],
        "time/training_seconds": watch.seconds["training"],
        "time/agreement_seconds": watch.seconds["agreement"],
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
