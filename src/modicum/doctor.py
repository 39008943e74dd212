"""A run looked at before it begins: its first step, sampled and scored, and what looks wrong.

Problems, seeds and settings are those of the run. Nothing is trained, and nothing written."""

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

from modicum import findings, plan
from modicum.config import TrainConfig
from modicum.draws import Taken
from modicum.plan import hardware
from modicum.rewards import StepExtras
from modicum.tasks.prompts import stops, template_of
from modicum.training import rate
from modicum.training.hearing import batch_of
from modicum.training.rollout import Rollout, looked_at
from modicum.training.session import Session, notes, prepare
from modicum.training.step import sample_groups, score
from modicum.types import SPLITS


def _found(session: Session, rollout: Rollout) -> float | None:
    """The rate that the run would find; None without a signal, or where it draws more first."""
    signals, settings = rollout.signals, session.config.batch
    if session.choice.more(signals, settings.prompts_per_step, 1):
        return None
    kept = session.choice.kept(signals, settings.prompts_per_step)
    taken = Taken(kept, settings.divides, settings.cut)
    batch = batch_of(session, rollout.groups, rollout.rewards_PG, taken)
    return rate.find(session, rollout.groups, batch).value if batch.has_signal else None


def examine(config: TrainConfig, problems: int = 0) -> dict[str, Any]:
    """What the first step of a run shows, as JSON values; `problems`: only so many of its own.
    Raises UserError where the run could not begin."""
    plan.check(config)
    session = prepare(config)
    config, batch = session.config, session.config.batch
    few = min(problems or batch.prompts_per_step, batch.prompts_per_step)
    session.config = replace(session.config, batch=replace(batch, prompts_per_step=few))
    groups, faults = sample_groups(session, 0), list[str]()
    reward = session.reward.at(StepExtras(0, config.steps or 1))
    rollout = Rollout(groups, *score(session.task, reward, groups, faults, batch.cut))
    signals = int(session.objective.signal(rollout.rewards_PG).sum())
    trials, found = looked_at(session, rollout, signals)
    found += findings.of_data(session.task, config)
    if faults:
        found.insert(0, findings.Finding("scores failed and are 0", faults[0], "mend the function"))
    machine = hardware.parse("this", config.compute.device, config.compute.dtype)
    sampling, tokenizer = config.sampling, session.policy.tokenizer
    ends = tokenizer.convert_ids_to_tokens(list(session.policy.end_tokens))
    every = [trial for group in trials for trial in group]
    told = ((of[0].problem, [_shown(trial, sampling.style) for trial in of]) for of in trials)
    return {
        **{name: getattr(config, name) for name in ("model", "update", "task", "reward")},
        "problems_of": {split: session.task.size(split) for split in SPLITS},
        "template": template_of(tokenizer, sampling),
        "style": sampling.style,
        "ends": [*ends, *stops(tokenizer, sampling)],
        "prompt": tokenizer.decode(groups[0].prompt),
        "prompt_tokens": [len(group.prompt) for group in groups],
        "problems": [
            {"id": p.id, "question": p.question, "gold": p.answer, "completions": completions}
            for p, completions in told
        ],
        "with_signal": signals,
        "accuracy": fmean(trial.grade.strict for trial in every),
        "lenient": fmean(trial.grade.lenient for trial in every),
        "cut": fmean(not trial.completion.finished for trial in every),
        "length": fmean(len(trial.completion.tokens) for trial in every),
        "longest": max(len(trial.completion.tokens) for trial in every),
        "max_tokens": sampling.max_tokens,
        "learning_rate": session.learning_rate
        or (_found(session, rollout) if few == batch.prompts_per_step else None),
        "plan": plan.make(config, machine).to_json(),
        "notes": notes(session),
        "findings": [finding._asdict() for finding in found],
        "learns": signals > 0,
    }


def _shown(trial: findings.JudgedCompletion, style: str) -> dict[str, Any]:
    return {
        "text": trial.completion.text,
        "tokens": len(trial.completion.tokens),
        "reward": None if math.isnan(trial.total) else trial.total,
        "scores": {name: None if math.isnan(s) else s for name, s in trial.scores.items()},
        "why": trial.reasons(style),
    }
