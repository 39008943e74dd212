"""Driving an update in a training loop that is not the package's own.

The driver does to any torch optimizer what `optimization` and `step` do to theirs: what
trains changes at rollout boundaries, the schedule is shown gradients and steps, state of
what stops is kept, deleted or moved to the CPU, multipliers hold for one step. The loop
keeps its loss, its optimizer and its scheduler of the learning rate.

Departures from the package's own loop:
- There are no fp32 masters: the optimizer moves the model's own tensors. A warning says
  when these are too coarse for the step size.
- A step without a signal is one whose gradient is zero. With a KL term it never is.
- A step in which a schedule only measures moves nothing, but the loop counts it.
- Where some entries of a tensor train, its gradient has zeros elsewhere, and all else is
  put back after the step. Weight decay acts on the entries' values, not on their
  difference from the start, and moments have the size of the whole tensor.
- Gradients of single groups do not exist here: schedules that need them are refused.
"""

from __future__ import annotations

import warnings
from typing import Any, Self

import torch
from torch import Tensor

from modicum.config import Optimizer
from modicum.models.precision import too_fine
from modicum.types import RunStopped, UserError
from modicum.updates.base import Prepared
from modicum.updates.outside import Entries, Kept, Rates, free_the_bottom, give_back
from modicum.updates.rules import AdamWRule, park, unpark
from modicum.updates.schedule import Decision

MAX_SKIPPED = 3  # steps in a row without a finite gradient


class Driver:
    """Drives `prepared` in a loop: attach, then begin_step, after_backward, after_step."""

    def __init__(self, prepared: Prepared, max_grad_norm: float = 0.0) -> None:
        if prepared.schedule.ever_by_group:
            raise UserError(
                "this update looks at the gradient of every group of completions by itself, and a"
                " loop from outside only has their sum; train it with modicum's own loop"
            )
        if max_grad_norm < 0:
            raise UserError(f"max_grad_norm must be at least 0, not {max_grad_norm}")
        self.prepared, self.max_grad_norm = prepared, max_grad_norm
        self.kept = Kept(prepared)
        self.decisions: list[dict[str, Any]] = []
        """What was decided, after how many steps, and on what evidence."""
        self.steps = self.signal_steps = self.skipped = self.skipped_in_row = 0
        self.entries = Entries(prepared)
        self.parked: dict[str, dict[str, Any]] = {}
        """Optimizer state on the CPU, of what rests."""
        self.held: set[str] = set()
        self.shown: dict[str, Tensor] = {}
        """The gradients of the step that is taken; empty: none is, or it has no signal."""
        self._made: torch.optim.Optimizer | None = None
        self._scales = False

    # Begin and end -----------------------------------------------------------------------

    def optimizer(self, learning_rate: float, **settings: Any) -> torch.optim.Optimizer:
        """The update's own optimizer, over all that may train.

        `settings`: weight_decay, beta1, beta2, epsilon.
        """
        groups = [
            {
                "params": list(self.prepared.trainable.values()),
                "names": list(self.prepared.trainable),
                "lr": learning_rate,
            }
        ]
        chosen = Optimizer(learning_rate=learning_rate, **settings)
        self._made = self.prepared.rule.make(groups, chosen)
        return self._made

    def unlock(self) -> None:
        """All that may train asks for gradients, as optimizers leave out what does not."""
        for parameter in self.prepared.trainable.values():
            parameter.requires_grad_(True)

    def attach(self, optimizer: Any, total_steps: int) -> Self:
        """Drive `optimizer`, which holds all that may train, for at most `total_steps` steps."""
        bare = _bare(optimizer)
        self._scales = getattr(optimizer, "scaler", None) is not None
        there = {id(p) for group in bare.param_groups for p in group["params"]}
        missing = sorted(n for n, p in self.prepared.trainable.items() if id(p) not in there)
        if missing:
            raise UserError(
                f"the optimizer does not hold {missing[0]} ({len(missing)} such tensors), which may"
                " train: make the callback before the optimizer, and on one device or under DDP"
            )
        if type(self.prepared.rule) is not AdamWRule and bare is not self._made:
            raise UserError(
                "this update has an optimizer of its own: make it with"
                " driver.optimizer(learning_rate), and for a Trainer pass"
                " optimizers=(callback.driver.optimizer(learning_rate), None)"
            )
        rate = max(float(group.get("initial_lr", group["lr"])) for group in bare.param_groups)
        coarse = too_fine(self.prepared.trainable, rate)
        if coarse:
            warnings.warn(
                f"{coarse[0]} ({len(coarse)} such tensors) is too coarse for a learning rate of"
                f" {rate:g}: steps are lost in rounding. Load the model in float32",
                stacklevel=2,
            )
        self._optimizer, self._rates = bare, Rates(bare)
        free_the_bottom(self.prepared.model)
        self.prepared.schedule.plan(total_steps)
        self.prepared.activate(list(self.prepared.active))
        self.entries.begin()
        self.held |= self.prepared.active.keys()
        self.kept.check("when training began")
        self.kept.mark(self.entries.masters)
        return self

    def report(self, resting: bool = True) -> str:
        """A sentence that says what was proven; RunStopped when it does not hold."""
        return self.kept.check(f"after {self.steps} steps", resting)

    def detach(self) -> None:
        """Leave the model as other training would expect it, the update's freezing aside."""
        give_back(self.prepared.model)

    # Step --------------------------------------------------------------------------------

    def begin_step(self, boundary: bool = True) -> Decision | None:
        """Before the forward pass; at a `boundary`, before new completions, what trains may change."""
        self._check_attached()
        decision = self.prepared.schedule.decide(self.signal_steps) if boundary else None
        if decision is not None:
            self._switch(decision)
        self._freeze_others()
        return decision

    def after_backward(self) -> None:
        """When the gradients of the whole step are there, before the optimizer's step."""
        self._check_attached()
        self._freeze_others()
        schedule, active = self.prepared.schedule, self.prepared.active
        self.entries.collect()
        tensors = self.entries.tensors()
        maybe = {name: tensors[name].grad for name in active}
        found = {name: grad for name, grad in maybe.items() if grad is not None}
        if not found:
            raise RunStopped(
                "no tensor that trains got a gradient: the loss does not depend on them"
            )
        self.steps += 1
        self.shown = {}
        sizes = _norms(found)
        if not self._is_finite(float(sizes.norm())):
            return
        has_signal = bool(sizes.norm() > 0)
        if has_signal:
            schedule.gradients(found)
            self.signal_steps += 1
            self.shown = found
        if schedule.holds:
            self._drop()
            return
        if schedule.edits_gradients:
            sizes = _norms(found)
        self.kept.pushed.update(
            n for n, size in zip(found, sizes.tolist(), strict=True) if size > 0
        )
        norm = float(sizes.norm())
        if 0 < self.max_grad_norm < norm:
            torch._foreach_mul_(list(found.values()), self.max_grad_norm / norm)
        if self.shown:
            schedule.stepping(tensors)
        self.entries.spread()
        rates = schedule.rates(self.signal_steps)
        self._rates.split({id(self.prepared.trainable[n]): x for n, x in rates.items()})

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimizer's step, with the gradients still there."""
        self._check_attached()
        self._rates.join()
        self.entries.put_back()
        if self.shown:
            tensors = self.entries.tensors()
            values = {name: tensors[name] for name in tensors if name in self.held}
            with self.entries.edited():
                self.prepared.schedule.stepped(values, self.shown)
            self.shown = {}

    def _is_finite(self, norm: float) -> bool:
        """Whether the step can be taken; if not it is skipped, and that is counted."""
        if norm < float("inf"):
            self.skipped_in_row = 0
            return True
        self._drop()
        self.skipped += 1
        self.skipped_in_row += 1
        # A scaler of fp16 gradients looks for its factor by such steps.
        if self.skipped_in_row >= MAX_SKIPPED and not self._scales:
            raise RunStopped(
                f"the gradient ({norm:g}) was not finite for {MAX_SKIPPED} steps in a row; skipped"
                " steps changed nothing"
            )
        return False

    def _drop(self) -> None:
        """No gradients: the optimizer passes over everything."""
        self.shown = {}
        for parameter in self.prepared.active.values():
            parameter.grad = None

    def _freeze_others(self) -> None:
        """Whatever PEFT or a trainer has switched on in between is off again."""
        active = {id(p) for p in self.prepared.active.values()}
        for parameter in self.prepared.model.parameters():
            wanted = id(parameter) in active
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
            if not wanted:
                parameter.grad = None

    def _check_attached(self) -> None:
        if not hasattr(self, "_rates"):
            raise UserError("call driver.attach(optimizer, total_steps) before the first step")

    # Switch ------------------------------------------------------------------------------

    def _switch(self, decision: Decision) -> None:
        """Train what the decision says from now on, by the schedule's policy."""
        before = set(self.prepared.active)
        redone = self.entries.change(decision.entries)
        self.prepared.activate(decision.active)
        after, policy = set(self.prepared.active), self.prepared.schedule.policy
        self._forget(set(self.held) if decision.restart else redone)
        if policy == "reset":
            self._forget(before - after)
            self.held -= before - after
            redone |= before - after
        if policy == "cpu":
            for name in before - after:
                self.parked[name] = park(self._optimizer, self.prepared.trainable[name])
        self.entries.begin(redone)
        self.held |= after
        for name in after & self.parked.keys():
            unpark(self._optimizer, self.prepared.trainable[name], self.parked.pop(name))
        self.kept.mark(self.entries.masters)
        self.decisions.append(
            {
                "steps": self.steps,
                "trains": sorted(after),
                "evidence": dict(decision.evidence),
            }
        )

    def _forget(self, names: set[str]) -> None:
        for name in names:
            self._optimizer.state.pop(self.prepared.trainable[name], None)
            self.parked.pop(name, None)


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself: accelerate wraps it."""
    inner = getattr(optimizer, "optimizer", None)
    return optimizer if inner is None else inner


def _norms(gradients: dict[str, Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(gradients.values())))
