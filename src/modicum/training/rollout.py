"""The rollout of a step: all groups that it draws, what they earned, and which of them are trained.

And what a run says while no step has had a signal, and when it ends so.

Shapes: P problem, G member."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from modicum import findings, machine
from modicum.config import PROBE_EVERY
from modicum.curricula import Seen
from modicum.draws import EVERYTHING, Taken
from modicum.engine.flops import StepFlops
from modicum.evaluate import grade, held_out
from modicum.models.load import inner
from modicum.objectives.parts import has_signal
from modicum.rewards import StepExtras
from modicum.tasks.prompts import encode, template_of
from modicum.training.session import Session
from modicum.training.step import Scores, agree, sample_groups, score
from modicum.types import Batch, Group

PROBED = 64  # problems
VERDICTS = ("accuracy", "accuracy(lenient=True)")
"""Terms whose verdicts say whether a group has a signal; the first that a reward has."""
SAID_AT = (1, 10, 100)  # steps without any signal
ELSE = {
    "refill": "--groups refill draws on until groups have one",
    findings.LENIENT: f"the reward {findings.LENIENT} pays for unmarked answers too",
    "": "an easier level of the task has more right answers",
}
"""What may help besides what the findings say, unless a run has it."""


class Rollout(NamedTuple):
    """All groups that a step drew, and what they earned, whichever of them are trained."""

    groups: Sequence[Group]
    scores: Scores
    rewards_PG: Tensor
    rounds: Sequence[int] = ()  # how many groups each round of the step drew
    taken: Taken = EVERYTHING

    @property
    def signals(self) -> list[bool]:
        """Whether the verdicts of each group differ, or its rewards where none is of accuracy."""
        name = next((name for name in VERDICTS if name in self.scores[0][0]), None)
        if name is None:
            return has_signal(self.rewards_PG).tolist()
        verdicts_PG = torch.tensor([[s[name] for s in row] for row in self.scores])
        return has_signal(verdicts_PG).tolist()

    @property
    def kept(self) -> Sequence[int]:
        """The numbers of the groups that are trained."""
        return range(len(self.groups)) if self.taken.kept is None else self.taken.kept

    @property
    def divisor(self) -> int:
        """How many groups the loss is divided by."""
        return len(self.kept if self.taken.divides == "kept" else self.groups)

    @property
    def tokens(self) -> int:
        """Of all completions."""
        return sum(len(c.tokens) for group in self.groups for c in group.completions)

    def part(self, numbers: Sequence[int]) -> "Rollout":
        """Some of the groups."""
        groups, scores = [self.groups[n] for n in numbers], [self.scores[n] for n in numbers]
        return Rollout(groups, scores, self.rewards_PG[list(numbers)])

    def seen(self) -> list[Seen]:
        """What came of every problem, for the curriculum."""
        found = []
        for group, row, rewards in zip(*self[:2], self.rewards_PG.tolist(), strict=True):
            verdicts = [s["accuracy"] for s in row if s.get("accuracy", float("nan")) >= 0]
            right = sum(verdict == 1 for verdict in verdicts)
            found.append(Seen(group.problem, tuple(rewards), right, len(verdicts)))
        return found


def draw(
    session: Session, step: int, extras: StepExtras, faults: list[str], watch: machine.Stopwatch
) -> Rollout:
    """Groups until `batch.groups` has enough, sampled, checked and scored, in all processes.

    The ledger has those that are left out as `rejected` (no signal) and `surplus`."""
    batch, choice, team = session.config.batch, session.choice, session.parallel
    reward = session.reward.at(extras)
    groups, scores, rewards, rounds = list[Group](), Scores(), list[Tensor](), list[int]()
    signals, more = list[bool](), batch.prompts_per_step
    while more:
        fresh = sample_groups(session, step, more, len(groups))
        watch.lap("sampling")
        agree(session, fresh, step)
        watch.lap("agreement")
        rounds.append(len(fresh))
        found = score(session.task, reward, fresh, faults, batch.cut, len(groups), team)
        groups, scores, rewards = groups + fresh, scores + found[0], [*rewards, found[1]]
        rollout = Rollout(groups, scores, torch.cat(rewards), rounds)
        signals = rollout.signals
        more = choice.more(signals, batch.prompts_per_step, len(rounds))
        watch.lap("scoring")
    extras.share([c for group in groups for c in group.completions], team.lines)
    kept = choice.kept(signals, batch.prompts_per_step)
    for number in set(range(len(groups))) - set(kept):
        purpose = "surplus" if signals[number] else "rejected"
        session.policy.move(purpose, groups[number].completions, "train")
    return rollout._replace(taken=Taken(kept, batch.divides, batch.cut))


def work_of(session: Session, rollout: Rollout, batch: Batch) -> StepFlops:
    """What the processes have computed in a step on a batch, together."""
    team, updates = session.parallel, session.config.batch.updates_per_rollout
    ends = pairwise((0, *accumulate(rollout.rounds)))
    rounds = [sum(map(team.owns, range(*each))) for each in ends]
    groups = [group for number, group in enumerate(rollout.groups) if team.owns(number)]
    mine = replace(batch, rows=tuple(team.mine(batch.rows)))
    found = team.summed(asdict(session.flops.step(groups, mine, updates, rounds)))
    return StepFlops(**found)


def probe_set(session: Session, step: int) -> dict[str, float]:
    """Accuracy on the first 64 tune problems, an answer each, where a step is to look at it.

    The same problems with the same noise in every step, whatever the curriculum draws."""
    config, task = session.config, session.task
    every = config.evaluation.probe_every
    every = PROBE_EVERY * (config.curriculum != "uniform") if every is None else every
    if not every or step % every or task.size("tune") == 0:
        return {}
    problems = held_out(task, "tune", PROBED)
    written = session.policy.tokenizer, config.sampling, session.examples
    prompts = [encode(problem, *written) for problem in problems]
    keys = [("probe", config.seed, index) for index in range(len(problems))]
    found = grade(task, problems, session.policy.sample(prompts, keys, 1, config.sampling))
    return {"probe/accuracy": sum(g.strict for ((_, g),) in found) / len(found)}


def looked_at(
    session: Session, rollout: Rollout, signals: int
) -> tuple[findings.JudgedGroups, list[findings.Finding]]:
    """A step's judged completions, and what looks wrong; `signals` groups have a signal."""
    groups, scores = rollout[:2]
    config, policy = session.config, session.policy
    positions = getattr(inner(policy.model).config, "max_position_embeddings", None) or sys.maxsize
    room = positions - max(len(group.prompt) for group in groups)
    trials = findings.judged(session.task, session.reward, groups, scores)
    template = template_of(policy.tokenizer, config.sampling)
    return trials, findings.wrong(config, trials, signals, template, room)


def silent(session: Session, rollout: Rollout) -> str:
    """What to say of a step without a signal, the first of the run and some later ones."""
    done = session.counters.rollouts + 1
    learning = session.critic is not None and not rollout.kept  # alone
    if session.counters.signal_steps or done not in SAID_AT or learning:
        return ""
    _, found = looked_at(session, rollout, 0)
    session.silence = f"no group of step {done} had a signal: {found[0]}"
    has = {session.choice.name, *rollout.scores[0][0]}
    ways = ", ".join(text for name, text in ELSE.items() if name not in has)
    return f"{session.silence}. Nothing has been trained; else: {ways}"


def untrained(session: Session) -> str:
    """Why a run has trained nothing; empty: it has, or had no steps."""
    counters = session.counters
    moved = counters.signal_steps and counters.optimizer_steps > counters.skipped
    if moved or not counters.rollouts:
        return ""
    if counters.skipped:
        return "a loss or gradient was not finite: try a smaller learning rate, or fp32"
    if counters.signal_steps:
        return "the update had not begun to train: it takes more --steps"
    critic = session.critic
    if critic is not None and critic.counters.rollouts <= critic.goal.warmup:
        return "the critic still warmed up: it takes more --steps, or a shorter warmup"
    return session.silence or "no group of any step had a signal"
