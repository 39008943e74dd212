"""What the optimizer holds: masters, moments, step sizes, and what becomes of them.

The optimizer sees the masters of what trains now, in groups of equal step size. When a
schedule changes what trains, the state of what stops is kept, deleted or moved to the CPU
(`Schedule.policy`); what starts gets a fresh master and fresh moments, its bias correction
included, or those that were kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modicum.config import Optimizer
from modicum.models.precision import Dense, Masters, Sparse
from modicum.types import UserError
from modicum.updates.base import Prepared
from modicum.updates.rules import park, unpark
from modicum.updates.schedule import Decision


class Optimization:
    """Moves what trains by its gradients."""

    def __init__(self, prepared: Prepared, settings: Optimizer) -> None:
        self.prepared = prepared
        self.masters = Masters()
        self.entries: dict[str, Tensor] = dict(prepared.schedule.entries)
        self.parked: dict[str, dict[str, Tensor]] = {}
        """Optimizer state on the CPU, of what rests."""
        self.visited: set[str] = set()
        self.rebased: set[str] = set()
        """Tensors whose trained entries have changed, so that the base alone does not give them."""
        self._add_masters()
        self.optimizer = prepared.rule.make(self._groups(0.0, {}), settings)

    # Step --------------------------------------------------------------------------------

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the masters of what trains now, by name."""
        held = self.masters.tensors
        found = {name: held[name].grad for name in self.prepared.active}
        return {name: grad for name, grad in found.items() if grad is not None}

    def sure_to_move(
        self, norms: Mapping[str, float], rate: float, multipliers: Mapping[str, float]
    ) -> list[str]:
        """Names of what the next step changes for certain, by the norms of the gradients.

        Where steps are in proportion to gradients, one that is small beside a tensor's own
        spacing may leave it as it is. One whose norm is above the tensor's times the
        spacing at 1 is above the spacing of some entry.
        """
        pushed = [name for name, norm in norms.items() if norm > 0]
        if not self.prepared.rule.proportional or not pushed:
            return pushed
        held = self.masters.tensors
        own = torch.stack(torch._foreach_norm([held[name].detach() for name in pushed])).tolist()
        spacing = torch.finfo(torch.float32).eps
        return [
            name
            for name, size in zip(pushed, own, strict=True)
            if rate * multipliers.get(name, 1.0) * norms[name] > spacing * size
        ]

    def step(self, rate: float, multipliers: Mapping[str, float]) -> None:
        """Move the masters by their gradients; `masters.publish` writes them into the model."""
        self._set_rates(rate, multipliers)
        self.optimizer.step()
        self.visited.update(self.prepared.active)

    def clear(self) -> None:
        """Drop all gradients."""
        for tensor in self.masters.tensors.values():
            tensor.grad = None
        for parameter in self.prepared.active.values():
            parameter.grad = None

    def state_bytes(self) -> int:
        """Bytes of the optimizer's state where the model is, step counters left out."""
        return sum(
            value.numel() * value.element_size()
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor) and value.dim() > 0
        )

    def _set_rates(self, rate: float, multipliers: Mapping[str, float]) -> None:
        if len(self.optimizer.param_groups) == 1 and not multipliers:
            self.optimizer.param_groups[0]["lr"] = rate
            return
        self._regroup(rate, multipliers)

    def _regroup(self, rate: float, multipliers: Mapping[str, float]) -> None:
        """New groups of what trains now, with the other settings of the old ones."""
        old = self.optimizer.param_groups[0].items()
        settings = {k: v for k, v in old if k not in ("params", "lr", "names")}
        groups = self._groups(rate, multipliers)
        self.optimizer.param_groups = [{**settings, **group} for group in groups]

    def _groups(self, rate: float, multipliers: Mapping[str, float]) -> list[dict[str, Any]]:
        """The masters of what trains now, those of one step size together."""
        found: dict[float, dict[str, Any]] = {}
        held = self.masters.tensors
        for name in self.prepared.active:
            factor = multipliers.get(name, 1.0)
            group = found.setdefault(factor, {"params": [], "names": [], "lr": rate * factor})
            group["params"].append(held[name])
            group["names"].append(name)
        return list(found.values())

    # Switch ------------------------------------------------------------------------------

    def switch(self, decision: Decision) -> None:
        """Train what the decision says from now on, by the schedule's policy."""
        before = set(self.prepared.active)
        redone = self._redone(decision)
        self.prepared.activate(decision.active)
        after = set(self.prepared.active)
        policy = self.prepared.schedule.policy
        self._forget(set(self.masters.held) if decision.restart else redone)
        if policy == "reset":
            self._forget(before - after)
            self.masters.drop((before - after) & self.masters.held.keys())
        if policy == "cpu":
            for name in before - after:
                self._park(name)
        self.masters.drop(redone)
        self.rebased |= redone & self.visited
        self._add_masters()
        for name in after & self.parked.keys():
            self._unpark(name)
        self._regroup(0.0, {})

    def _redone(self, decision: Decision) -> set[str]:
        """Tensors whose trained entries change with the decision; they begin anew."""
        if decision.entries is None:
            return set()
        old, self.entries = self.entries, dict(decision.entries)
        return {name for name in self.masters.held if old.get(name) is not self.entries.get(name)}

    def _add_masters(self) -> None:
        for name, parameter in self.prepared.active.items():
            if name not in self.masters.held:
                self.masters.add(name, parameter, self.entries.get(name))

    def _forget(self, names: set[str]) -> None:
        for name in names & self.masters.held.keys():
            self.optimizer.state.pop(self.masters.held[name].tensor, None)
            self.parked.pop(name, None)

    def _park(self, name: str) -> None:
        """Move the state of what stops to the CPU, its fp32 copy too; entries stay, being few."""
        master = self.masters.held[name]
        self.parked[name] = park(self.optimizer, master.tensor)
        if isinstance(master, Dense) and master.tensor is not master.parameter:
            self.parked[name]["master"] = master.tensor.detach().to("cpu")
            self.masters.drop([name])

    def _unpark(self, name: str) -> None:
        state = self.parked.pop(name)
        tensor = self.masters.held[name].tensor
        if "master" in state:
            with torch.no_grad():
                tensor.copy_(state.pop("master"))
        unpark(self.optimizer, tensor, state)

    # Checkpoints -------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Values of all that has trained, state of the optimizer, entries, as one flat dict."""
        held = self.masters.held
        found: dict[str, Tensor] = {}
        for name, parameter in self.prepared.trainable.items():
            if name in held:
                found[f"value/{name}"] = held[name].tensor
                for key, value in self.optimizer.state.get(held[name].tensor, {}).items():
                    found[f"optimizer/{key}/{name}"] = value
            elif name in self.visited:
                found[f"value/{name}"] = parameter
            if name in self.rebased:
                master = held.get(name)
                found[f"base/{name}"] = (
                    master.at_start() if isinstance(master, Sparse) else parameter
                )
        for name, state in self.parked.items():
            found |= {f"parked/{key}/{name}": value for key, value in state.items()}
        found |= {f"entries/{name}": where for name, where in self.entries.items()}
        return {name: t.detach().contiguous() for name, t in found.items()}

    def load(self, tensors: Mapping[str, Tensor], active: frozenset[str], folder: object) -> None:
        """Set what `tensors` gave, with `active` training; UserError when it does not fit."""
        parts: dict[str, dict[str, Tensor]] = {"value": {}, "entries": {}, "base": {}}
        states: dict[str, dict[str, dict[str, Tensor]]] = {"optimizer": {}, "parked": {}}
        for full, tensor in tensors.items():
            kind, _, rest = full.partition("/")
            if kind in parts:
                parts[kind][rest] = tensor
            elif kind in states:
                key, _, owner = rest.partition("/")
                states[kind].setdefault(owner, {})[key] = tensor
        trainable, values = self.prepared.trainable, parts["value"]
        odd = sorted((values.keys() | active) - trainable.keys()) or sorted(active - values.keys())
        if odd:
            raise UserError(f"checkpoint {folder} is of another update or model (see {odd[0]})")
        self.entries = parts["entries"]
        self.masters.drop(self.masters.held)
        self.optimizer.state.clear()
        self.prepared.activate(active)
        for name, value in parts["base"].items():
            with torch.no_grad():
                trainable[name].copy_(value)
        # What has optimizer state, or more than the model holds of it, has a master, resting
        # under `keep` or training.
        for name, parameter in trainable.items():
            own = values.get(name, parameter)
            more = (own.dtype, own.shape) != (parameter.dtype, parameter.shape)
            if name in active or name in states["optimizer"] or more:
                self.masters.add(name, parameter, self.entries.get(name))
        # What the schedule only looks at so far is in the checkpoint and has not been stepped.
        moved = parts["base"].keys() | states["optimizer"].keys() | states["parked"].keys()
        for name, value in values.items():
            held = self.masters.held.get(name)
            target = trainable[name] if held is None else held.tensor
            if target.shape != value.shape:
                raise UserError(f"checkpoint {folder} is of another update or model (see {name})")
            if not torch.equal(target.detach(), value):
                moved.add(name)
            with torch.no_grad():
                target.copy_(value)
        self.masters.publish()
        for name, state in states["optimizer"].items():
            self.optimizer.state[self.masters.held[name].tensor] = dict(state)
        self.parked = {
            name: {key: value.to("cpu") for key, value in state.items()}
            for name, state in states["parked"].items()
        }
        self.visited, self.rebased = moved, set(parts["base"])
        self._regroup(0.0, {})
