"""The rollout of a step: all groups that it draws, what they earned, and which of them are trained.

Shapes: P problem, G member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modicum import machine
from modicum.config import PROBE_EVERY
from modicum.curricula import Seen
from modicum.draws import EVERYTHING, Taken
from modicum.evaluate import grade, held_out
from modicum.objectives.parts import has_signal
from modicum.rewards import Reward
from modicum.tasks.prompts import encode
from modicum.training.session import Session
from modicum.training.step import Scores, agree, sample_groups, score
from modicum.types import Group

PROBED = 64  # problems
VERDICTS = ("accuracy", "accuracy(lenient=True)")
"""Terms whose verdicts say whether a group has a signal; the first that a reward has."""


class Rollout(NamedTuple):
    """All groups that a step drew, and what they earned, whichever of them are trained."""

    groups: Sequence[Group]
    scores: Scores
    rewards_PG: Tensor
    rounds: Sequence[int] = ()
    """How many groups each round of the step drew."""
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

    def part(self, numbers: Sequence[int]) -> Rollout:
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
    session: Session, step: int, reward: Reward, faults: list[str], watch: machine.Stopwatch
) -> Rollout:
    """Groups until `batch.groups` has enough, sampled, checked and scored.

    The ledger has those that are left out as `rejected` (no signal) and `surplus`.
    """
    batch, choice = session.config.batch, session.choice
    groups, scores, rewards, rounds = list[Group](), Scores(), list[Tensor](), list[int]()
    signals, more = list[bool](), batch.prompts_per_step
    while more:
        fresh = sample_groups(session, step, more, len(groups))
        watch.lap("sampling")
        agree(session, fresh, step)
        watch.lap("agreement")
        rounds.append(len(fresh))
        found = score(session.task, reward, fresh, faults, batch.cut, len(groups))
        groups, scores, rewards = groups + fresh, scores + found[0], [*rewards, found[1]]
        rollout = Rollout(groups, scores, torch.cat(rewards), rounds)
        signals = rollout.signals
        more = choice.more(signals, batch.prompts_per_step, len(rounds))
        watch.lap("scoring")
    kept = choice.kept(signals, batch.prompts_per_step)
    for number in set(range(len(groups))) - set(kept):
        purpose = "surplus" if signals[number] else "rejected"
        session.policy.move(purpose, groups[number].completions, "train")
    return rollout._replace(taken=Taken(kept, batch.divides, batch.cut))


def probe_set(session: Session, step: int) -> dict[str, float]:
    """Accuracy on the first 64 tune problems, an answer each, where a step is to look at it.

    The same problems with the same noise in every step, whatever the curriculum draws.
    """
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
