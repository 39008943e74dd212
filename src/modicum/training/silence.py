"""What a run says while no step has had a signal, and when it ends so."""

import sys

from modicum import findings
from modicum.models.load import inner
from modicum.tasks.prompts import template_of
from modicum.training.rollout import Rollout
from modicum.training.session import Session

SAID_AT = (1, 10, 100)  # steps without any signal
ELSE = {
    "refill": "--groups refill draws on until groups have one",
    findings.LENIENT: f"the reward {findings.LENIENT} pays for unmarked answers too",
    "": "an easier level of the task has more right answers",
}
"""What may help besides what the findings say, unless a run has it."""


def look(
    session: Session, rollout: Rollout, signals: int
) -> tuple[findings.JudgedGroups, list[findings.Finding]]:
    """A step's completions with their verdicts and scores, and what looks wrong with them.

    `signals` groups have a signal.
    """
    groups, scores = rollout[:2]
    config, policy = session.config, session.policy
    positions = getattr(inner(policy.model).config, "max_position_embeddings", None) or sys.maxsize
    room = positions - max(len(group.prompt) for group in groups)
    trials = findings.judged(session.task, session.reward, groups, scores)
    template = template_of(policy.tokenizer, config.sampling)
    return trials, findings.wrong(config, trials, signals, template, room)


def heard(session: Session, rollout: Rollout) -> str:
    """What to say of a step without a signal, the first of the run and some later ones."""
    done = session.counters.rollouts + 1
    learning = session.critic is not None and not rollout.kept  # alone
    if session.counters.signal_steps or done not in SAID_AT or learning:
        return ""
    _, found = look(session, rollout, 0)
    session.silence = f"no group of step {done} had a signal: {found[0]}"
    has = {session.choice.name, *rollout.scores[0][0]}
    ways = ", ".join(text for name, text in ELSE.items() if name not in has)
    return f"{session.silence}. Nothing has been trained; else: {ways}"


def ended(session: Session, steps: int) -> str:
    """Why a run of so many steps has trained nothing; empty: it has, or had no steps."""
    counters = session.counters
    if not steps or (counters.signal_steps and counters.optimizer_steps > counters.skipped):
        return ""
    if counters.skipped:
        return "a loss or gradient was not finite: try a smaller learning rate, or fp32"
    if counters.signal_steps:
        return "the update had not begun to train: it takes more --steps"
    if (
        session.critic is not None
        and session.critic.counters.rollouts <= session.critic.goal.warmup
    ):
        return "the critic still warmed up: it takes more --steps, or a shorter warmup"
    return session.silence or "no group of any step had a signal"
