"""The text that the tiny base model is pretrained on: arithmetic and countdown, mixed form.

Most documents ask a question; most answers come at once, as in a text that gives the
result and not the way, and a minority works step by step, within tags or without. A small
model learns late to do a chain of sums in one step, so what it says at once is mostly wrong,
and what it works out is mostly right: the base knows how to think and seldom does. Plain
two-number sums give the steps their practice. Questions are drawn from the train split
alone, so that test problems stay unseen. docs/tiny.md tells what came of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from modicum.limits import Positive, check_limits
from modicum.tasks.arithmetic import Arithmetic, Countdown, chain
from modicum.tasks.base import stream
from modicum.types import Problem, UserError


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of document and of the forms of answer; each adds up to 1."""

    questions: float = 0.72
    """Chains of sums."""
    countdown: float = 0.08
    """Countdown problems."""
    sums: float = 0.20
    """Plain sums of two numbers."""
    direct_tagged: float = 0.43
    """The answer at once, within tags."""
    direct_plain: float = 0.12
    """The answer at once, without tags."""
    worked_tagged: float = 0.28
    """The way and the answer, within tags."""
    worked_plain: float = 0.17
    """The way and the answer, without tags."""


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides what the tiny base becomes."""

    steps: Positive = 1600
    """Optimizer steps taken. By step 2,600 the model had learnt to sum a chain at once."""
    decay_steps: int = 2600
    """Where the schedule would end; the run stops before."""
    documents_per_step: Positive = 128
    """Documents in one step."""
    micro_batches: Positive = 3
    """Parts that a step is split into, by length."""
    learning_rate: float = 3e-3
    """Peak of the schedule."""
    warmup_steps: int = 100
    """Steps of linear warm-up; cosine decay to a twentieth follows."""
    weight_decay: float = 0.1
    """On matrices only."""
    layers: Positive = 6
    """Decoder layers."""
    hidden: Positive = 128
    """Width."""
    intermediate: Positive = 288
    """Width of the MLP."""
    heads: Positive = 4
    """Attention heads; two key/value heads."""
    seed: int = 0
    """Of the weights and of the text."""
    mixture: Mixture = field(default_factory=Mixture)
    """Shares of the kinds of text."""

    def __post_init__(self) -> None:
        check_limits(self)
        if self.hidden % self.heads or self.heads % 2:
            raise UserError(f"heads must be even and divide hidden, not {self.heads}")


def work_of(problem: Problem) -> str:
    """The way to the answer, written out.

    A chain of sums becomes shorter by its first operation at each equals sign
    (7-3+2: `4+2=6`); a countdown problem gets one equation a line.
    """
    if "steps" in problem.data:
        return "\n".join(problem.data["steps"])
    return "=".join(chain(problem.data["terms"], problem.data["signs"])[1:])


def answer_text(problem: Problem, form: str) -> str:
    """The answer to `problem` in one of the four forms of `Mixture`."""
    answer = problem.answer
    if form == "direct_tagged":
        return f"<answer>{answer}</answer>"
    if form == "direct_plain":
        return answer
    work = work_of(problem)
    if form == "worked_tagged":
        return f"<think>{work}</think><answer>{answer}</answer>"
    return f"{work}\n{answer}"


def sums_text(rng: random.Random) -> str:
    """Eight two-number sums, the kind that a step of a longer chain is."""
    lines = []
    for _ in range(8):
        start, term, sign = rng.randint(-25, 50), rng.randint(1, 9), rng.choice("+-")
        lines.append(f"{start}{sign}{term}={chain([start, term], [sign])[-1]}")
    return "\n".join(lines)


FORMS = ("direct_tagged", "direct_plain", "worked_tagged", "worked_plain")
CHAINS = tuple(Arithmetic(terms=n, digits=1) for n in (2, 3, 4, 5, 6, 7, 8))
CHAIN_WEIGHTS = (1, 2, 3, 4, 3, 1, 1)
HUNTS = tuple(Countdown(numbers=n, max_value=m) for n, m in ((2, 20), (3, 10)))


def documents(seed: int, step: int, count: int, mixture: Mixture) -> list[str]:
    """The `count` documents of pretraining step `step`; the same for the same arguments."""
    rng = stream("corpus", seed, step)
    weights = [getattr(mixture, form) for form in FORMS]
    kinds = (mixture.questions, mixture.countdown, mixture.sums)
    made: list[str] = []
    for index in range(step * count, (step + 1) * count):
        kind = rng.choices(("questions", "countdown", "sums"), kinds)[0]
        if kind == "sums":
            made.append(sums_text(rng))
            continue
        chain = rng.choices(CHAINS, CHAIN_WEIGHTS)[0]
        task = chain if kind == "questions" else rng.choice(HUNTS)
        problem = task.problem("train", seed, index)
        form = rng.choices(FORMS, weights)[0]
        made.append(f"{problem.question}\n{answer_text(problem, form)}")
    return made
