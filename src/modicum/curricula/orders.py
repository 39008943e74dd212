"""The two orders that go by difficulty, or by what came of problems.

By rank: the task's own order without the problems outside of a window. The rank of a problem is the
share of the train split that is easier; of equal ones a hash of seed and problem decides, so that
parts have equal sizes. A split of up to `RANKED` problems is ranked whole, another one by its first
`RANKED`. What has no difficulty comes in the last part.

By arms: the next problem of one of several levels, or single problems. Levels are those of a
procedural task (`arithmetic(terms=(2, 3, 4))`), or the difficulties of a fixed set where these are
ten at most, or else five parts of equal size by rank; problems without a difficulty are the last."""

import bisect
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, ClassVar

import numpy as np

from modicum.curricula.base import Curriculum, Measure, Order, Seen, as_count, pool, rated, turns_of
from modicum.tasks.base import Task, stream
from modicum.types import Problem, UserError

BATCHES = 4  # that what is open at first must hold
DISTINCT, PARTS = 10, 5
VISITS = 3  # of each problem, below which a history says little
Memory = tuple[float, ...]  # what is kept of an arm; nothing while it was not seen


def tie(seed: int, problem: Problem) -> float:
    """What decides between problems of the same difficulty."""
    return stream(seed, "easy_to_hard", problem.id).random()


class ByRank(Curriculum):
    """Base of the curricula whose problems are those of some ranks."""

    directed: ClassVar[bool] = True
    hard_first: ClassVar[bool] = False
    guarded: ClassVar[bool] = False  # whether few open problems are refused

    @abstractmethod
    def window(self, progress: float, size: int) -> tuple[int, int]:
        """The ranks of `size` that are open, from and below; 0 is the first to come."""

    def metrics(self, progress: float) -> dict[str, float]:
        """What it logs of itself."""
        return {}

    def order(self, task: Task, seed: int, measure: Measure) -> Order:
        return RankedOrder(task, seed, self, measure)


class RankedOrder(Order):
    """The task's own order without what is outside of the window."""

    def __init__(self, task: Task, seed: int, member: ByRank, measure: Measure) -> None:
        super().__init__(task, seed)
        self.member, self.measure, self.progress = member, measure, 0.0
        problems = pool(task, seed)
        least = getattr(member, "stages", 2)
        found, self.told = rated(str(member), task, problems, measure, least)
        self.keys = {p.id: (found[p.id], tie(seed, p)) for p in problems if p.id in found}
        self.ranked = sorted(set(self.keys.values()))

    def next(self, count: int, progress: float) -> list[Problem]:
        self.progress = progress
        self.low, self.high = self.member.window(progress, len(self.ranked))
        return super().next(count, progress)

    def belongs(self, problem: Problem) -> bool:
        size = len(self.ranked)
        if (key := self.keys.get(problem.id)) is None:
            if (level := self.measure(problem)) is None:
                return self.high >= size
            key = level, tie(self.seed, problem)
        # What is harder than all that were ranked counts as the hardest.
        rank = min(bisect.bisect_left(self.ranked, key), size - 1)
        return self.low <= (size - 1 - rank if self.member.hard_first else rank) < self.high

    def look(self, count: int, steps: int) -> list[str]:
        _, first = self.member.window(0.0, len(self.ranked))
        if self.member.guarded and self.task.size("train") and first < BATCHES * count:
            raise UserError.of("few_open", by=self.member, first=first, of=BATCHES, count=count)
        return self.told

    def metrics(self) -> dict[str, float]:
        return self.member.metrics(self.progress) | super().metrics()


class ByArm(Curriculum):
    """Base of the curricula that choose among arms: levels, or with `visits` single problems."""

    learns: ClassVar[bool] = True
    least: ClassVar[int] = 2
    visits: ClassVar[bool] = False

    @abstractmethod
    def choose(self, order: "ArmOrder", rng: Random, count: int, progress: float) -> Sequence[int]:
        """The arm of each of `count` problems."""

    def hear(self, order: "ArmOrder", told: Mapping[int, tuple[int, int]]) -> None:
        """Learn of every arm that was drawn how many of how many answers were right."""
        for arm, (right, of) in told.items():
            order.memory[arm] = self.keep(order.memory[arm], right, of)
            order.weights[arm] = self.weigh(order.memory[arm], of)

    def keep(self, memory: Memory, right: int, of: int) -> Memory:
        """What is kept of an arm after these answers."""
        return memory

    def weigh(self, memory: Memory, group: int) -> float:
        """The weight of an arm of which this is kept."""
        return 1.0

    def scaled(self, levels: Sequence[float], task: Task) -> Sequence[float]:
        """The difficulties of the arms as it wants them; UserError where it cannot use them."""
        return levels

    def order(self, task: Task, seed: int, measure: Measure) -> Order:
        return ArmOrder(task, seed, self, measure)


class ArmOrder(Order):
    """Problems of arms, each from the place where its last one was."""

    def __init__(self, task: Task, seed: int, member: ByArm, measure: Measure) -> None:
        super().__init__(task, seed)
        self.member, self.learns = member, member.learns
        self.follows_length = not member.learns
        self.arms, levels, self.told = _arms(member, task, seed, measure)
        size = len(self.arms)
        if size < member.least:
            raise UserError(f"{member} needs at least {member.least} levels; {task} has {size}")
        self.levels = np.array(member.scaled(levels, task))
        self.target = min(self.levels[self.levels < math.inf].tolist(), default=0.0)
        self.places = np.zeros(size, int)
        self.memory: list[Memory] = [()] * size
        self.weights = np.full(size, member.weigh((), 0))
        self.arm_of: dict[str, int] = {}  # of the problems that were drawn since it last heard

    def next(self, count: int, progress: float) -> list[Problem]:
        rng = stream(self.seed, self.member.name, self.drawn)
        self.drawn += count
        found = []
        for arm in self.member.choose(self, rng, count, progress):
            found.append(self.arms[arm](int(self.places[arm])))
            self.places[arm] += 1
            self.arm_of[found[-1].id] = arm
        return found

    def look(self, count: int, steps: int) -> list[str]:
        size, of, member = len(self.arms), self.task.size("train") or 0, self.member
        if not member.visits:
            return self.told
        if count > size:
            raise UserError(f"{member}: a step of {count} needs more than {size} of {self.task}")
        found = [*self.told, *[f"{member}: {size} of {of} problems are drawn from"] * (of > size)]
        if not member.directed and (visits := count * steps / size) < VISITS:
            few = f"at most {visits:.1f} visits of each of {size} problems, and below {VISITS} it"
            hint = "can hardly know which to prefer; bandit, over levels, needs fewer"
            found.append(f"{member}: {few} {hint}")
        return found

    def observe(self, seen: Sequence[Seen]) -> None:
        super().observe(seen)
        told: dict[int, tuple[int, int]] = {}
        for one in seen:
            right, of = told.get(arm := self.arm_of[one.problem.id], (0, 0))
            told[arm] = right + one.right, of + one.known
        self.arm_of = {}
        self.member.hear(self, {arm: some for arm, some in told.items() if some[1]})

    def state(self) -> dict[str, Any]:
        arms = self.places.nonzero()[0].tolist()
        kept = [[n, int(self.places[n]), [*self.memory[n]], float(self.weights[n])] for n in arms]
        return super().state() | {"arms": kept, "target": self.target}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.target = _number(state["target"])
        for arm, place, memory, weight in state["arms"]:
            self.places[as_count(arm, len(self.arms))] = as_count(place)
            self.memory[arm], self.weights[arm] = tuple(map(_number, memory)), _number(weight)


def _number(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number that it keeps")
    return value


def _arms(
    member: ByArm, task: Task, seed: int, measure: Measure
) -> tuple[Sequence[Callable[[int], Problem]], Sequence[float], list[str]]:
    """Of every arm, the easiest first, its problem at a place, and its difficulty; what to tell."""
    turns, ends = turns_of(task), task.size("train") is not None
    if not ends and (member.visits or turns == 1):
        raise UserError.of("endless", curriculum=member.name, task=task)
    problems, told = pool(task, seed, turns), list[str]()
    found = {p.id: d for p in problems if (d := measure(p)) is not None}
    if member.directed or not member.visits:
        found, told = rated(member.name, task, problems, measure)
    parts = [[p] for p in sorted(problems, key=lambda p: (found.get(p.id, math.inf), tie(seed, p)))]
    if ends and not member.visits:
        known, values = [p for (p,) in parts if p.id in found], sorted(set(found.values()))
        cuts = [n * len(known) // PARTS for n in range(PARTS + 1)]
        some = [known[i:j] for i, j in itertools.pairwise(cuts)]
        if len(values) <= DISTINCT:
            some = [[p for p in known if found[p.id] == value] for value in values]
        parts = [part for part in (*some, [p for (p,) in parts[len(known) :]]) if part]
    levels = [found.get(part[0].id, math.inf) for part in parts]
    if ends:
        return [lambda place, part=part: part[place % len(part)] for part in parts], levels, told
    turn_of = {p.id: turn for turn, p in enumerate(problems)}
    turns_in_order = [turn_of[p.id] for (p,) in parts]
    at = partial(task.problem, "train", seed)
    return [lambda place, n=n: at(place * turns + n) for n in turns_in_order], levels, told
