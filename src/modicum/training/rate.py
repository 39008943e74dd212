"""The learning rate at which one first optimizer step moves the policy by a given KL.

    rate = tried * sqrt(KL / KL of the step at the tried rate)

The gradient of one half of a rollout's problems makes first steps, the completions of the other half say
the KL (k3 of http://joschu.net/blog/kl-approx.html, unbiased and never below 0). On the completions of the
gradient itself it would be up to five times as large. docs/rates.md has the steps, and what the rule was
measured on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from modicum.engine import logprobs
from modicum.engine.logprobs import Heard, forward_backward
from modicum.models.precision import Masters
from modicum.objectives.parts import Counts
from modicum.plan.sizes import Chosen
from modicum.recipes import start_rate
from modicum.report.words import say
from modicum.runs import Run
from modicum.tracking import Note
from modicum.training.folder import choices, write_config
from modicum.training.session import Session
from modicum.training.step import within_memory
from modicum.types import Batch, Group, Row
from modicum.updates.members import shrink
from modicum.updates.stepper import parts

TARGET = 0.01  # nats a token
NEAR = 3.0  # the square law holds this far from the target, in KL
Half = tuple[list[Row], list[Row]]
MOST_TRIES = 8
MOST_TURNS = 6
MOST_ROWS = 128  # of the gradient, and as many of the held-out half
FEWEST_TOKENS = 64
ENOUGH = 8  # problems
LEAST, MOST = TARGET / 30**2, 1.0  # nats of a first step; far above, the square law has ended


def settle(session: Session, run: Run, groups: Sequence[Group], batch: Batch, note: Note) -> bool:
    """Find the learning rate if it is not known and a step comes; False: there is none yet."""
    settings = session.config.optimizer
    if settings.learning_rate is not None or session.prepared.schedule.holds:
        return True
    if not batch.has_signal:
        return False
    found = Chosen(*session.parallel.told(lambda: astuple(find(session, groups, batch))))
    optimizer = replace(settings, learning_rate=found.value)
    session.config = replace(session.config, optimizer=optimizer)
    run.write("chosen.json", {**choices(run.folder), "learning_rate": asdict(found)})
    write_config(run, session.config)
    note(f"learning rate {found.value:.3g}: {found.why}")
    return True


def find(session: Session, groups: Sequence[Group], batch: Batch) -> Chosen:
    """The rate for a run, from a rollout of its untrained policy; nothing is changed.

    Where the rollout does not say (too few tokens, nothing finite) it is that of the table of
    `recipes.start_rate`, by kind and size of the update."""
    start = short(start_rate(session.update, session.active_parameters))
    if session.optimization.masters.in_pieces:
        return Chosen(start, "by kind and size of the update: its masters are in pieces")
    both, found = halves(groups, batch), []
    for names in turns(session):
        values = []
        for half in both:
            work = partial(searched, session, batch, half, names, start)
            value, kl = within_memory(session, max(map(len, half)), work)
            values += [value] if kl else []
        found += [pooled(values)] if values else []
    if not found:
        why = "no first step was finite" if both else "the first rollout was too small to try"
        return Chosen(start, f"by kind and size of the update: {why}")
    rough = f" (of {len(groups)} problems: roughly)" * (len(groups) < ENOUGH)
    why = f"a first step at it moves the policy by {TARGET:g} nats a token{rough}"
    return Chosen(short(min(found)), why)


def searched(
    session: Session, batch: Batch, half: Half, names: frozenset[str], start: float
) -> tuple[float, float]:
    """`search` by first steps of the tensors `names`."""
    with FirstSteps(session, batch, half, names) as tried:
        return tried.rate(start, TARGET)


def pooled(rates: Sequence[float]) -> float:
    """The rate at which the mean of the KLs is what each has at its own, by the square law."""
    return (sum(rate**-2 for rate in rates) / len(rates)) ** -0.5


def short(rate: float) -> float:
    """A rate with three digits, as it stands in names and files."""
    return float(f"{rate:.3g}")


def turns(session: Session) -> list[frozenset[str]]:
    """What trains now, and some of what a schedule will give a turn: no step may go too far."""
    prepared = session.prepared
    sets = [frozenset(names) for names in prepared.schedule.typical(prepared.trainable)]
    return list(dict.fromkeys([frozenset(prepared.active), *sets[:: -(-len(sets) // MOST_TURNS)]]))


def search(kl_at: Callable[[float], float], start: float, target: float) -> tuple[float, float]:
    """The rate at which `kl_at` is the target, and the KL that was nearest; 0: there was none."""
    rate, found = start, 0.0
    for _ in range(MOST_TRIES):
        found = kl_at(rate)
        if not math.isfinite(found):
            rate, found = rate / 10, 0.0
            continue
        factor = math.sqrt(target / found) if found > 0 else 100.0
        rate *= min(100.0, max(0.01, factor))
        if target / NEAR <= found <= target * NEAR:
            break
    return rate, found


def divergence(ratio_N: Tensor) -> float:
    """KL in nats a token, from log-ratios d = log q - log p of tokens drawn from p."""
    return float((ratio_N.expm1() - ratio_N).mean())


def halves(groups: Sequence[Group], batch: Batch) -> list[Half]:
    """Rows of every other problem that give a gradient, all completions of the others; and swapped.

    What has no signal, or too few tokens beside it, is left out."""
    found = []
    for odd in (0, 1):
        given = [row for row in batch.rows if row.group % 2 == odd]
        held = [row for number in range(1 - odd, len(groups), 2) for row in unpaid(groups, number)]
        signal = any(row.group in batch.signal for row in given)
        if signal and sum(len(row.tokens) for row in held) >= FEWEST_TOKENS:
            found.append((given[:MOST_ROWS], held[:MOST_ROWS]))
    return found


def unpaid(groups: Sequence[Group], number: int) -> list[Row]:
    """All completions of a group, as rows without an advantage."""
    prompt, some = groups[number].prompt, groups[number].completions
    return [Row(prompt, c.tokens, c.logprobs, 0.0, number, c.trunk) for c in some]


class FirstSteps:
    """First steps on some rows, looked at on others; a context that undoes them.

    `half` has the rows of the gradient and those that are looked at, and `batch` the counts that the
    loss is divided by. What trains is what trains now, or the tensors `names`, for a schedule that
    gives others their turn."""

    def __init__(
        self, session: Session, batch: Batch, half: Half, names: frozenset[str] | None = None
    ) -> None:
        self.session, self.batch, (self.given, self.held) = session, batch, half
        prepared, self.own = session.prepared, frozenset(session.prepared.active)
        self.masters = now = session.optimization.masters
        if names is not None and names != self.own:
            # What sampling kept belongs to another lowest layer.
            self.given, self.held = ([replace(row, trunk=None) for row in rows] for rows in half)
            prepared.activate(names)
            session.policy.follow(prepared)
            some = {n: e for n, e in prepared.schedule.entries.items() if n in names}
            self.masters = Masters(prepared.active, some, now.seed, now.stochastic, now.scale)

    def __enter__(self) -> Self:
        tensors = self.masters.tensors
        self.drawn = dict(self.masters.drawn)
        self.start = {n: t.detach().to("cpu", copy=True) for n, t in tensors.items()}
        self.gradients: dict[str, Tensor] = {}
        try:
            self.before_N = _logprobs(self.session, self.held)
            self._backward()
        except (RuntimeError, MemoryError):
            self.__exit__()
            raise
        self.gradients = {n: t.grad for n, t in tensors.items() if t.grad is not None}
        self.blind = any(not bool(grad.any()) for grad in self.gradients.values())
        """Whether the first gradient does not reach all: a factor that begins at 0 hides others."""
        return self

    def __exit__(self, *_: object) -> None:
        self._back()
        self.masters.drawn = self.drawn
        self.masters.publish()
        self._clear()
        prepared = self.session.prepared
        if frozenset(prepared.active) != self.own:
            self.masters.drop(list(self.masters.held))
            prepared.activate(self.own)
            self.session.policy.follow(prepared)

    def ratios(self, rate: float, steps: int = 1) -> Tensor:
        """log q - log p [N] of the tokens of `held` after so many steps at `rate` from the start."""
        self._back()
        optimizer, most = self._optimizer(rate), self.session.config.optimizer.max_grad_norm
        for number in range(steps):
            if number:
                self._clear()
                self._backward()
            gradients = {n: t.grad for n, t in self.masters.tensors.items() if t.grad is not None}
            shrink(gradients, self.masters.norms(gradients)[1], most)
            optimizer.step()
            self.masters.draw(self.masters.held, number + 1)
        return _logprobs(self.session, self.held) - self.before_N

    def rate(self, start: float, target: float) -> tuple[float, float]:
        """`search` by the first step; where it is blind, by the second too, and the lower counts.

        Two steps in one direction have four times the KL of one."""
        rate, kl = search(lambda tried: divergence(self.ratios(tried)), start, target)
        if self.blind and kl:
            at, kl = search(lambda tried: divergence(self.ratios(tried, 2)) / 4, rate, target)
            rate = min(rate, at)
        return rate, kl

    def _backward(self) -> None:
        config, session, batch = self.session.config, self.session, self.batch
        counts = Counts(batch.num_rows, batch.num_tokens, config.sampling.max_tokens)
        who = session.policy, session.prepared, session.objective
        for start in range(0, len(self.given), config.batch.micro_batch):
            rows = self.given[start : start + config.batch.micro_batch]
            scale = self.masters.scale.value
            forward_backward(*who, rows, counts, config.sampling, None, scale=scale)
            self.masters.collect()

    def _optimizer(self, rate: float) -> torch.optim.Optimizer:
        """The run's, as it begins, with the schedule's multipliers of the rate."""
        session, tensors = self.session, self.masters.tensors
        prepared, steps = session.prepared, session.counters.signal_steps
        names = [n for n in prepared.active if n in tensors]
        multipliers = prepared.schedule.rates(steps)
        factors = {id(tensors[n]): multipliers.get(n, 1.0) for n in names}
        group = {"params": [tensors[n] for n in names], "names": names, "lr": rate}
        return prepared.rule.make(list(parts(group, factors)), session.config.optimizer)

    @torch.no_grad()
    def _back(self) -> None:
        for name, tensor in self.masters.tensors.items():
            tensor.copy_(self.start[name])
            tensor.grad = self.gradients.get(name)

    def _clear(self) -> None:
        for tensor in [*self.masters.tensors.values(), *self.session.prepared.active.values()]:
            tensor.grad = None


def _logprobs(session: Session, rows: Sequence[Row]) -> Tensor:
    """Log-probs [N] of the rows' tokens under the policy as it is."""
    size, sampling = session.config.batch.micro_batch, session.config.sampling
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    with torch.no_grad():
        found = [logprobs.logprobs(session.policy.scorer, part, sampling)[0] for part in parts]
    return torch.cat(found).double()


def far_off(session: Session, heard: Sequence[Heard], rate: float) -> str:
    """A warning if a first step that was just taken at `rate` went much too far, or hardly moved.

    It is read on completions that were trained on, so only roughly, and as of a step at the whole
    rate. `heard` has their log-probs from before the step."""
    rows = [replace(row, advantage=0.0) for part, *_ in heard for row in part]
    before_N = torch.cat([policy_N for _, policy_N, _ in heard]).double()
    count = max(1, min(len(rows), MOST_ROWS // 4))
    after_N = _logprobs(session, rows[:count])
    kl = divergence(after_N - before_N[: len(after_N)]) * (session.learning_rate / rate) ** 2
    if LEAST <= kl <= MOST:
        return ""
    side = "below" if kl < LEAST else "above"
    return say("far_off", kl=kl, target=TARGET, rate=session.learning_rate, side=side)
