"""What the driver needs of a model and an optimizer that are not the package's own.

`Kept` is the change proof (`proofs`) without masters: hashes of what must not change.
`Entries` trains some entries of a tensor by an optimizer that moves the whole of it.
`Rates` gives tensors of one optimizer group different step sizes for one step.
`free_the_bottom` lets backward stop at the lowest layer that trains: gradient
checkpointing asks for the gradient of the inputs, and then every frozen layer below has
one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modicum.models.precision import Sparse
from modicum.types import RunStopped, UserError
from modicum.updates.base import Prepared
from modicum.updates.proofs import Resting, fingerprint, fingerprints

LISTS = ("params", "names", "param_names")  # of a group: one item a tensor
HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")  # of transformers, of PEFT


class Kept(Resting):
    """Hashes of the frozen tensors, of those that rest, and of what does not train of one."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared)
        self.frozen = fingerprints(prepared.frozen)
        self.started = fingerprints(prepared.trainable)
        self.outside: dict[str, tuple[Sparse, str]] = {}
        self.pushed: set[str] = set()
        """Tensors that had a gradient in a step that was taken."""

    def mark(self, sparse: Mapping[str, Sparse]) -> None:
        """`rest`, and hash what does not train of a tensor of which some entries do."""
        self.rest()
        self._check_outside("when what trains changed")
        for name in self.outside.keys() - sparse.keys():
            del self.outside[name]
        for name, master in sparse.items():
            if self.outside.get(name, (None, ""))[0] is not master:
                self.outside[name] = (master, fingerprint(_without(master)))

    def _check_outside(self, when: str) -> None:
        for name, (master, mark) in self.outside.items():
            if fingerprint(_without(master)) != mark:
                raise RunStopped(
                    f"change proof ({when}): {name} has changed where it should not train"
                )

    def check(self, when: str, resting: bool = True) -> str:
        """A sentence that says what was proven; RunStopped when it does not hold."""
        for name, tensor in self.prepared.frozen.items():
            if fingerprint(tensor) != self.frozen[name]:
                raise RunStopped(
                    f"change proof ({when}): {name} should be frozen and has changed since the"
                    " callback was made, in its values or its dtype"
                )
        if resting:
            self.check_resting(when)
        self._check_outside(when)
        trainable = self.prepared.trainable
        moved = {n for n, mark in self.started.items() if fingerprint(trainable[n]) != mark}
        still = len(self.pushed - moved - self.prepared.schedule.may_return)
        return (
            f"{len(moved)} of {len(trainable)} trainable tensors changed"
            + (f", {len(self.resting)} of them rest now" if self.resting else "")
            + (f", {still} had a gradient and did not change" if still else "")
            + f", {len(self.frozen)} frozen ones are bit-identical"
        )


class Entries:
    """Tensors of which some entries train, in an optimizer that holds all of each.

    A schedule is shown the same as in the package's own loop: of each such tensor the
    vector of the entries' differences from the start, and its gradient.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.where: dict[str, Tensor] = dict(prepared.schedule.entries)
        self.masters: dict[str, Sparse] = {}
        self.before: dict[str, Tensor] = {}
        """Whole values before the step."""

    def change(self, wanted: Mapping[str, Tensor] | None) -> set[str]:
        """Other entries train; the tensors that begin anew."""
        if wanted is None:
            return set()
        old, self.where = self.where, dict(wanted)
        names = old.keys() | self.where.keys()
        return {name for name in names if old.get(name) is not self.where.get(name)}

    def begin(self, redone: Set[str] = frozenset()) -> None:
        """Count differences from now on, of `redone` and of what has just begun to train."""
        for name in redone & self.masters.keys():
            del self.masters[name]
        for name, parameter in self.prepared.active.items():
            if name in self.where and name not in self.masters:
                self.masters[name] = Sparse(parameter, self.where[name])
                # No hook: a Trainer clips, unscales and averages whole gradients.
                self.masters[name].release()

    def tensors(self) -> dict[str, Tensor]:
        """What a schedule is shown of everything that may train."""
        return {**self.prepared.trainable, **{n: m.tensor for n, m in self.masters.items()}}

    def collect(self) -> None:
        """Gradients of tensors become gradients of entries."""
        for name in self.masters.keys() & self.prepared.active.keys():
            self.masters[name].tensor.grad = None
            self.masters[name].collect()

    def spread(self) -> None:
        """Gradients of entries become gradients of tensors; the tensors' values are kept."""
        for name in self.masters.keys() & self.prepared.active.keys():
            master = self.masters[name]
            if master.tensor.grad is not None:
                flat = torch.zeros_like(master.parameter).flatten()
                flat[master.entries] = master.tensor.grad.to(flat.dtype)
                master.parameter.grad = flat.view_as(master.parameter)
                self.before[name] = master.parameter.detach().clone()

    def put_back(self) -> None:
        """After the step: only the entries have moved."""
        for name, before in self.before.items():
            master = self.masters[name]
            moved = master.parameter.flatten()[master.entries]
            master.tensor.copy_(moved.float() - master.origin)
            flat = before.flatten()
            flat[master.entries] = moved
            master.parameter.copy_(flat.view_as(before))
        self.before = {}

    @contextmanager
    def edited(self) -> Iterator[None]:
        """What is changed of the differences within the block is changed in the model."""
        old = {name: master.tensor.detach().clone() for name, master in self.masters.items()}
        yield
        for name, master in self.masters.items():
            if not torch.equal(old[name], master.tensor):
                master.parameter.copy_(master.published())


def _without(master: Sparse) -> Tensor:
    """A tensor with zero where it trains."""
    flat = master.parameter.detach().clone().flatten()
    flat[master.entries] = 0
    return flat


class Rates:
    """Step multipliers for one step of an optimizer.

    Its groups are split by multiplier before the step and are the old ones afterwards, so
    that a scheduler of the learning rate, which knows groups by their number, sees nothing.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.whole: list[dict[str, Any]] | None = None

    def split(self, factors: Mapping[int, float]) -> None:
        """Scale the rate of the tensors with these ids."""
        if all(factor == 1.0 for factor in factors.values()):
            return
        self.whole = self.optimizer.param_groups
        self.optimizer.param_groups = [p for g in self.whole for p in _parts(g, factors)]

    def join(self) -> None:
        """Put the old groups back."""
        if self.whole is not None:
            self.optimizer.param_groups, self.whole = self.whole, None


def _parts(group: dict[str, Any], factors: Mapping[int, float]) -> Iterator[dict[str, Any]]:
    """A group in parts of one multiplier each."""
    places: dict[float, list[int]] = {}
    for index, parameter in enumerate(group["params"]):
        places.setdefault(factors.get(id(parameter), 1.0), []).append(index)
    for factor, indices in places.items():
        lists = {key: [group[key][i] for i in indices] for key in LISTS if key in group}
        yield {**group, **lists, "lr": group["lr"] * factor}


def _nothing() -> None:
    """Stands in for `enable_input_require_grads` while a driver is at work."""


def free_the_bottom(model: nn.Module) -> None:
    """No gradient of the inputs, now or when checkpointing is switched on again.

    Switched on by transformers it hooks the embedding, TRL does so once more for PEFT and
    after every generation. UserError for the reentrant kind, which needs that gradient.
    """
    for module in model.modules():
        run = getattr(module, "_gradient_checkpointing_func", None)
        options = getattr(run, "keywords", {})
        if getattr(module, "gradient_checkpointing", False) and options.get("use_reentrant", True):
            raise UserError(
                "reentrant gradient checkpointing needs gradients through the frozen layers; give"
                " gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        if hasattr(type(module), "enable_input_require_grads"):
            module.disable_input_require_grads()  # type: ignore[operator]
            module.__dict__["enable_input_require_grads"] = _nothing
        # A second hook is forgotten by the first's owner, and stays.
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") in HOOKS:
                del module._forward_hooks[key]


def give_back(model: nn.Module) -> None:
    """Undo what `free_the_bottom` left in the way of later training."""
    for module in model.modules():
        module.__dict__.pop("enable_input_require_grads", None)
