"""One optimizer step under a schedule, and what becomes of the optimizer at a switch.

The same for the package's own loop (`training.optimization`) and for others (`driver`). What
starts to train gets fresh moments, their bias correction included, or those that were kept."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modicum.models.device import finish
from modicum.models.precision import SparseMaster
from modicum.types import RunStopped
from modicum.updates.members import shrink
from modicum.updates.proofs import Proof
from modicum.updates.schedule import Decision

MAX_SKIPPED = 3  # steps in a row without a finite loss and gradient
LISTS = ("params", "names", "param_names")  # of an optimizer's group: one item a tensor


@dataclass
class StepCounters:
    """What a stepper counts, and nobody else."""

    optimizer_steps: int = 0  # steps that moved something or were skipped
    skipped: int = 0  # steps without a finite loss and gradient
    skipped_in_row: int = 0
    signal_steps: int = 0  # steps that the schedule was shown: with a signal, and finite
    active_sum: int = 0  # how many numbers trained, summed over the optimizer steps
    decisions: int = 0
    optimizer_bytes: int = 0  # the most that the optimizer has held where the model is


class Stepper:
    """Takes steps: `attach` once, then `switch`, `before`, the optimizer's step, `after`."""

    not_finite: ClassVar[str] = "not_finite"  # what is said where steps stay so
    optimizer: torch.optim.Optimizer

    def __init__(self, proof: Proof, counters: StepCounters, max_grad_norm: float) -> None:
        """`proof` is of the update and of the masters that are stepped."""
        self.prepared, self.masters, self.proof = proof.prepared, proof.masters, proof
        self.counters, self.max_grad_norm = counters, max_grad_norm
        self.max_skipped: float = MAX_SKIPPED
        self.entries: dict[str, Tensor] = dict(self.prepared.schedule.entries)
        self.parked: dict[str, dict[str, Any]] = {}  # optimizer state on the CPU, of what rests
        self.visited: set[str] = set()
        self.rebased: set[str] = set()  # those whose entries changed: the base does not give them
        self.taken = False  # whether the step that `before` looked at is taken
        self.shown: dict[str, Tensor] = {}  # what the schedule was shown of a step that is taken
        self.moves: dict[str, float] = {}
        """How many spacings it goes in tensors of which the proof has to hear."""
        self.unshown: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        """The schedule before it was shown the groups of a step that may yet be skipped."""
        self._whole: list[dict[str, Any]] | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Step by this optimizer from now on."""
        self.optimizer = optimizer
        self._add_masters()
        self.proof.rest()

    def size(self, names: Iterable[str]) -> int:
        """How many numbers train when these tensors do."""
        trainable = self.prepared.trainable
        return sum(self.entries.get(name, trainable[name]).numel() for name in names)

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the masters of what trains now, by name."""
        held = self.masters.tensors
        found = {name: held[name].grad for name in self.prepared.active}
        return {name: grad for name, grad in found.items() if grad is not None}

    def show_group(self, gradients: Mapping[str, Tensor]) -> None:
        """Show the schedule what one group gave; if the step is skipped, it is as if never shown."""
        schedule = self.prepared.schedule
        if self.unshown is None:
            kept = {name: tensor.clone() for name, tensor in schedule.tensors().items()}
            self.unshown = schedule.state(), kept
        schedule.group_gradients(gradients)

    def before(
        self, loss: float = 0.0, rate: float = float("inf"), has_signal: bool | None = None
    ) -> float:
        """Look at the gradients of a step, clip them and set multipliers; `taken`: go on.

        A loss or gradient that is not finite is skipped and counted. The schedule is shown
        finite gradients of steps with a signal (None: whose gradient is not zero) before
        clipping. The proof hears which tensors had a gradient; without a rate, that they move.
        Returns the norm before clipping; RunStopped after `max_skipped` skipped in a row."""
        schedule, counters = self.prepared.schedule, self.counters
        self.taken, self.shown = False, {}
        gradients = self.gradients()
        if not gradients:
            raise RunStopped.of("no_gradient")
        norms, norm = self.masters.norms(gradients)
        if not (abs(loss) < float("inf") and norm < float("inf")):
            self.begin_anew()
            if abs(loss) < float("inf") and self.masters.scale.fall():
                return norm  # in fp16 it overflowed, and what comes next is scaled less
            counters.optimizer_steps += 1
            counters.skipped += 1
            counters.skipped_in_row += 1
            if counters.skipped_in_row >= self.max_skipped:
                count = counters.skipped_in_row
                raise RunStopped.of(self.not_finite, loss=loss, norm=norm, count=count)
            return norm
        counters.skipped_in_row, self.unshown = 0, None
        has_signal = norm > 0 if has_signal is None else has_signal
        if has_signal:
            schedule.gradients(gradients)
            counters.signal_steps += 1
        if schedule.holds or (self.prepared.rule.needs_signal and not has_signal):
            self.clear()
            return norm
        counters.optimizer_steps += 1
        if schedule.edits_gradients:
            norms, norm = self.masters.norms(gradients)
        rates = schedule.rates(counters.signal_steps)
        shrink(gradients, norm, self.max_grad_norm)
        if self.proof.waiting:
            pushed = [n for n, size in zip(gradients, norms.tolist(), strict=True) if size > 0]
            self.proof.push(pushed, sure=rate == float("inf"))
            self.moves = {n: self._move(n, rate * rates.get(n, 1.0)) for n in self.proof.unsure()}
        if has_signal:
            schedule.stepping(self.masters.tensors)
            self.shown = gradients
        self._split(rates)
        self.taken = True
        return norm

    def after(self) -> None:
        """When the optimizer has stepped, with the gradients still there."""
        if self.taken:
            self.taken = False
            self.visited.update(self.prepared.active)
            self.counters.active_sum += self.size(self.prepared.active)
            if self.shown:
                self.prepared.schedule.stepped(self.masters.tensors, self.shown)
            self.shown = {}  # or they would outlive the step
            self.prepared.schedule.settle()
            self.proof.expect({name: self._taken(name) for name in self.moves})
            self.moves = {}
            self.masters.draw(self.prepared.active, self.counters.optimizer_steps)
            self.masters.scale.stepped()

    def _move(self, name: str, rate: float) -> float:
        """How many spacings the coming step goes at most in a tensor."""
        master, group = self.masters.held[name], self.optimizer.param_groups[0]
        state = self.optimizer.state.get(master.leaf, {})
        rule, group = self.prepared.rule, {**group, "lr": rate}
        return master.furthest(lambda at, held: rule.spacings(name, at, held, group), state)

    def _taken(self, name: str) -> float | None:
        """How far the step went; None where the optimizer has passed a tensor over."""
        master = self.masters.held[name]
        stateful = self.prepared.rule.state_bytes(name, master.tensor.shape) > 0
        there = self.optimizer.state.get(master.leaf) or not stateful or master.tensor.grad is None
        return self.moves[name] if there else None

    def clear(self) -> None:
        """Drop all gradients: an optimizer passes over what has none."""
        for tensor in [*self.masters.tensors.values(), *self.prepared.active.values()]:
            tensor.grad = None

    def begin_anew(self) -> None:
        """Drop the gradients of a step, and what the schedule was shown of them."""
        self.clear()
        if self.unshown is not None:
            self.prepared.schedule.load(*self.unshown)
            self.unshown = None

    def _split(self, multipliers: Mapping[str, float]) -> None:
        """Groups of one multiplier each, which no scheduler of the rate sees; `join` undoes it."""
        held = self.masters.held
        factors = {id(held[n].leaf): multipliers.get(n, 1.0) for n in self.prepared.active}
        if any(factor != 1.0 for factor in factors.values()):
            self._whole = self.optimizer.param_groups
            self.optimizer.param_groups = [p for g in self._whole for p in parts(g, factors)]

    def join(self) -> None:
        """Put the groups back that were split for a step."""
        if self._whole is not None:
            self.optimizer.param_groups, self._whole = self._whole, None

    def switch(self) -> Decision | None:
        """At a rollout boundary, let the schedule say what trains from now on."""
        decision = self.prepared.schedule.decide(self.counters.signal_steps)
        if decision is not None:
            self._change(decision)
            self.counters.decisions += 1
        return decision

    @torch.no_grad()
    def _change(self, decision: Decision) -> None:
        """Train what the decision says from now on, by the schedule's policy."""
        prepared, held = self.prepared, self.masters.held
        stopped, redone = prepared.active.keys() - decision.active, set[str]()
        if decision.entries is not None:  # what trains other entries from now on begins anew
            old, self.entries = self.entries, dict(decision.entries)
            redone = {name for name in held if old.get(name) is not self.entries.get(name)}
        self.proof.look(stopped | redone)
        prepared.activate(decision.active)
        self._forget(set(held) if decision.restart else redone | decision.fresh)
        if prepared.schedule.policy == "reset":
            self._forget(stopped)
            self.masters.drop(stopped)
        # Entries stay where they are, being few.
        for name in stopped if prepared.schedule.policy == "cpu" else ():
            master = held[name]
            state = dict(self.optimizer.state.pop(master.leaf, {}))
            if not isinstance(master, SparseMaster) and master.tensor is not master.parameter:
                state["master"] = master.tensor.detach()
                self.masters.drop([name])
            self.parked[name] = sent(state, "cpu")
        finish()
        self.masters.drop(redone & held.keys())
        self.rebased |= redone & self.visited
        self._add_masters()
        for name in prepared.active.keys() & self.parked.keys():
            state, master = self.parked.pop(name), held[name]
            if "master" in state:
                master.tensor.copy_(state.pop("master"), non_blocking=True)
            if state:
                known = {k: state.pop(k) for k in state.keys() & set(prepared.rule.on_host)}
                self.optimizer.state[master.leaf] = sent(state, master.leaf.device) | known
        self.proof.rest()

    def _add_masters(self) -> None:
        for name, parameter in self.prepared.active.items():
            if name not in self.masters.held:
                self.masters.add(name, parameter, self.entries.get(name))

    def _forget(self, names: set[str]) -> None:
        for name in names & self.masters.held.keys():
            self.optimizer.state.pop(self.masters.held[name].leaf, None)
            self.parked.pop(name, None)


def sent(state: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """An optimizer's state elsewhere; on the CPU after `models.device.finish`, in pinned memory."""
    found = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    return {**state, **{k: v.to(device, non_blocking=True) for k, v in found.items()}}


def parts(group: dict[str, Any], factors: Mapping[int, float]) -> Iterator[dict[str, Any]]:
    """A group in parts of one multiplier each."""
    places: dict[float, list[int]] = {}
    for index, parameter in enumerate(group["params"]):
        places.setdefault(factors.get(id(parameter), 1.0), []).append(index)
    for factor, indices in places.items():
        lists = {key: [group[key][i] for i in indices] for key in LISTS if key in group}
        yield {**group, **lists, "lr": group["lr"] * factor}
