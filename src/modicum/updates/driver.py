"""Driving an update in a training loop that is not the package's own (docs/outside.md).

The loop keeps its loss, its optimizer and its scheduler of the learning rate."""

import warnings
from typing import Any, Self

import torch
from torch import nn

from modicum.config import Optimizer
from modicum.models.precision import InPlace, too_fine
from modicum.types import UserError
from modicum.updates.base import Prepared
from modicum.updates.members import AdamWRule
from modicum.updates.proofs import Proof
from modicum.updates.schedule import Decision
from modicum.updates.stepper import MAX_SKIPPED, StepCounters, Stepper

HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")  # of transformers, of PEFT


class Driver:
    """Drives `prepared` in a loop: attach, then begin_step, after_backward, after_step."""

    def __init__(self, prepared: Prepared, max_grad_norm: float = 0.0) -> None:
        if prepared.schedule.ever_by_group:
            raise UserError.of("by_group")
        if max_grad_norm < 0:
            raise UserError(f"max_grad_norm must be at least 0, not {max_grad_norm}")
        self.prepared, self.held = prepared, InPlace()
        since = " since the callback was made, in its values or its dtype"
        self.kept = Proof(prepared, self.held, since)
        self.counters = StepCounters()
        self.stepper = Stepper(self.kept, self.counters, max_grad_norm)
        self.steps = 0  # steps of the loop, those that moved nothing too
        self.decisions: list[dict[str, Any]] = []  # after how many steps, and on what evidence
        self._made: torch.optim.Optimizer | None = None

    def optimizer(self, learning_rate: float, **settings: Any) -> torch.optim.Optimizer:
        """The update's own; `settings`: weight_decay, beta1, beta2, epsilon."""
        trainable = self.prepared.trainable
        group = {"params": [*trainable.values()], "names": [*trainable], "lr": learning_rate}
        chosen = Optimizer(learning_rate=learning_rate, **settings)
        self._made = self.prepared.rule.make([group], chosen)
        return self._made

    def unlock(self) -> None:
        """All that may train asks for gradients, as optimizers leave out what does not."""
        for parameter in self.prepared.trainable.values():
            parameter.requires_grad_(True)

    def attach(self, optimizer: Any, total_steps: int) -> Self:
        """Drive `optimizer`, which holds all that may train, for at most `total_steps` steps."""
        bare: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's
        there = {id(p) for group in bare.param_groups for p in group["params"]}
        missing = sorted(n for n, p in self.prepared.trainable.items() if id(p) not in there)
        if missing:
            raise UserError.of("not_held", first=missing[0], count=len(missing))
        if type(self.prepared.rule) is not AdamWRule and bare is not self._made:
            raise UserError.of("own_optimizer")
        rate = max(float(group.get("initial_lr", group["lr"])) for group in bare.param_groups)
        if coarse := too_fine(self.prepared.trainable, rate):
            which = f"{coarse[0]} ({len(coarse)} such tensors)"
            why = f"too coarse for a learning rate of {rate:g}: steps are lost in rounding"
            warnings.warn(f"{which} is {why}. Load the model in float32", stacklevel=2)
        free_the_bottom(self.prepared.model)
        self.prepared.schedule.plan(total_steps)
        self.prepared.activate(list(self.prepared.active))
        self.kept.check("when training began")
        self.stepper.attach(bare)
        # A scaler of fp16 gradients looks for its factor by steps that are not finite.
        scales = getattr(optimizer, "scaler", None) is not None
        self.stepper.max_skipped = float("inf") if scales else MAX_SKIPPED
        return self

    def report(self, resting: bool = True) -> str:
        """A sentence that says what was proven; RunStopped when it does not hold."""
        return self.kept.check(f"after {self.steps} steps", resting)

    def detach(self) -> None:
        """Leave the model as other training would expect it, the update's freezing aside."""
        for module in self.prepared.model.modules():
            module.__dict__.pop("enable_input_require_grads", None)

    def begin_step(self, boundary: bool = True) -> Decision | None:
        """Before the forward pass; at a `boundary`, before new completions, what trains may change."""
        self._check_attached()
        decision = self.stepper.switch() if boundary else None
        if decision is not None:
            trains, evidence = sorted(self.prepared.active), dict(decision.evidence)
            self.decisions.append({"steps": self.steps, "trains": trains, "evidence": evidence})
        self._freeze_others()
        return decision

    def after_backward(self) -> None:
        """When the gradients of the whole step are there, before the optimizer's step."""
        self._check_attached()
        self._freeze_others()
        self.held.collect()
        self.steps += 1
        self.stepper.before()
        for master in self.held.within:
            master.spread()

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimizer's step, with the gradients still there."""
        self._check_attached()
        self.stepper.join()
        for master in self.held.within:
            master.put_back()
        self.stepper.after()

    def _freeze_others(self) -> None:
        """Whatever PEFT or a trainer has switched on in between is off again."""
        active = {id(p) for p in self.prepared.active.values()}
        for parameter in self.prepared.model.parameters():
            parameter.requires_grad_(id(parameter) in active)
            if not parameter.requires_grad:
                parameter.grad = None

    def _check_attached(self) -> None:
        if not hasattr(self.stepper, "optimizer"):
            raise UserError("call driver.attach(optimizer, total_steps) before the first step")


def free_the_bottom(model: nn.Module) -> None:
    """No gradient of inputs, now or later (docs/outside.md); UserError for reentrant checkpointing."""
    for module in model.modules():
        run = getattr(module, "_gradient_checkpointing_func", None)
        options = getattr(run, "keywords", {})
        if getattr(module, "gradient_checkpointing", False) and options.get("use_reentrant", True):
            raise UserError.of("reentrant")
        if hasattr(type(module), "enable_input_require_grads"):
            module.disable_input_require_grads()  # type: ignore[operator]
            module.__dict__["enable_input_require_grads"] = lambda: None
        # A second hook is forgotten by the first's owner, and stays.
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") in HOOKS:
                del module._forward_hooks[key]
