"""The stepper of the package's own loop: it makes its optimizer, and can be saved.

The optimizer sees the masters of what trains now, in groups of equal step size.
How much of what they learnt has arrived in the model, whose weights are coarser, is sum(p m) / sum(m m)
with the changes p of the weights and m of the masters, over a sample of entries (docs/precision.md)."""

from collections.abc import Mapping
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from modicum.config import Optimizer
from modicum.models.device import finish
from modicum.models.precision import LossScale, Master, SparseMaster, is_coarse
from modicum.parallel import Team
from modicum.types import UserError
from modicum.updates.base import Prepared
from modicum.updates.proofs import ChangeProof
from modicum.updates.schedule import Decision, below
from modicum.updates.stepper import StepCounters, Stepper, sent

SAMPLE = 4096  # entries of a tensor
ENOUGH = 5  # optimizer steps before it is asked what has arrived
HALF = 0.5


class Arrival:
    """Remembers what a sample of `trainable` was; make it from the base."""

    def __init__(self, trainable: Mapping[str, nn.Parameter]) -> None:
        self.coarse = {name: p for name, p in trainable.items() if is_coarse(p)}
        self.samples: dict[tuple[str, int], Tensor] = {}
        self.start = {name: self._seen(name, p) for name, p in self.coarse.items()}

    def _seen(self, name: str, tensor: Tensor) -> Tensor:
        """The sampled entries of a tensor, in fp32."""
        flat = tensor.detach().reshape(-1)
        key = (name, len(flat))
        if key not in self.samples:
            self.samples[key] = torch.from_numpy(sample(*key)).to(self.coarse[name].device)
        return flat[self.samples[key].to(flat.device)].float().to(self.coarse[name].device)

    def share(self, held: Mapping[str, Master], parked: Mapping[str, Tensor]) -> float | None:
        """The share that has arrived, if anything has; `parked` are values of masters elsewhere."""
        sums = []
        for name, parameter in self.coarse.items():
            master = held.get(name)
            if isinstance(master, SparseMaster):
                learnt = self._seen(name, master.tensor)
                shown = self._seen(name, master.seen(parameter.detach()).float() - master.origin)
            elif master is not None or name in parked:
                values = parked[name] if master is None else master.values
                learnt = self._seen(name, values) - self.start[name]
                shown = self._seen(name, parameter) - self.start[name]
            else:
                continue
            sums.append(torch.stack([(shown * learnt).sum(), learnt.square().sum()]).double())
        along, whole = torch.stack(sums).sum(0).tolist() if sums else (0.0, 0.0)
        return along / whole if whole else None


def sample(name: str, size: int) -> np.ndarray:
    """Flat indices of at most SAMPLE entries of a tensor of `size`, drawn by its name."""
    if size <= SAMPLE:
        return np.arange(size)
    return np.unique(np.random.default_rng(crc32(name.encode())).integers(0, size, SAMPLE))


class Optimization(Stepper):
    """Moves what trains by its gradients."""

    not_finite: ClassVar[str] = "loss_not_finite"

    def __init__(
        self,
        prepared: Prepared,
        settings: Optimizer,
        counters: StepCounters | None = None,
        seed: int = 0,
        stochastic: bool = True,
        team: Team | None = None,
    ) -> None:
        """`stochastic`: masters are rounded by chance, with noise from `seed`. `team` says what of
        them is in this process."""
        scale = LossScale.of(prepared.model)
        masters = (team or Team()).masters(prepared, seed, stochastic, scale)
        self.arrival = Arrival(prepared.trainable)
        self.told = False
        proof = ChangeProof(prepared, masters)
        super().__init__(proof, counters or StepCounters(), settings.max_grad_norm)
        self.attach(prepared.rule.make([{**self._trained(), "lr": 0.0}], settings))

    def step(self, loss: float, rate: float, has_signal: bool = True) -> float:
        """Clip, step and drop the gradients, as `before` says; returns the gradient's norm."""
        self.join()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self.before(loss, rate, has_signal)
        if self.taken:
            self.optimizer.step()
            counters = self.counters
            counters.optimizer_bytes = max(counters.optimizer_bytes, self.state_bytes())
            self.after()
            self.clear()
        return norm

    def overflowed(self, loss: float) -> bool:
        """Whether a gradient in fp16 is not finite and the loss has a smaller scale now."""
        scale = self.masters.scale
        gradients = self.gradients() if scale.on and abs(loss) < float("inf") else {}
        finite = not gradients or self.masters.norms(gradients)[1] < float("inf")
        return not finite and scale.fall()

    def state_bytes(self) -> int:
        """Bytes of the optimizer's state where the model is, step counters left out."""
        held = [value for state in self.optimizer.state.values() for value in state.values()]
        tables = [value for value in held if isinstance(value, Tensor) and value.dim() > 0]
        return sum(table.numel() * table.element_size() for table in tables)

    def _change(self, decision: Decision) -> None:
        super()._change(decision)
        self._regroup()

    def _regroup(self) -> None:
        self.join()
        (group,) = self.optimizer.param_groups
        self.optimizer.param_groups = [{**group, **self._trained()}]

    def _trained(self) -> dict[str, Any]:
        held = self.masters.tensors
        names = list(self.prepared.active)
        return {"params": [held[name] for name in names], "names": names}

    def arrived(self) -> float | None:
        """How much of what masters learnt is in the model (`Arrival`)."""
        parked = {n: state["master"] for n, state in self.parked.items() if "master" in state}
        return self.arrival.share(self.masters.held, parked)

    def lost(self, arrived: float | None) -> str:
        """What to tell, once, of what was learnt and has not arrived; empty: nothing."""
        enough = self.counters.optimizer_steps >= ENOUGH
        if self.told or not enough or arrived is None or arrived >= HALF:
            return ""
        self.told = True
        cure = "" if self.masters.stochastic else 'rounding = "stochastic" or '
        return (
            f"after {self.counters.optimizer_steps} optimizer steps {arrived:.0%} of what the fp32"
            " masters learnt is in the model's weights, the rest is rounded away (update/arrived);"
            f' {cure}dtype = "fp32" keeps it'
        )

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
                some = isinstance(master, SparseMaster)
                found[f"base/{name}"] = master.at_start() if some else parameter
        for name, state in self.parked.items():
            found |= {f"parked/{key}/{name}": value for key, value in state.items()}
        found |= {f"entries/{name}": where for name, where in self.entries.items()}
        return {name: t.detach().contiguous() for name, t in found.items()}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside them, as JSON values."""
        told = {name: sorted(getattr(self.proof, name)) for name in ("pushed", "moved", "tried")}
        scale = self.masters.scale
        told |= {"scale": [scale.value, scale.calm]} if scale.on else {}
        return {**told, "active": sorted(self.prepared.active), "drawn": self.masters.drawn}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], folder: object) -> None:
        """Set what `tensors` and `state` gave; UserError when it does not fit. What has no step in
        which it was `drawn` was rounded to nearest."""
        self.masters.drawn, active = dict(state["drawn"]), frozenset[str](state["active"])
        if scale := state.get("scale"):  # of the loss, and how many steps it has been
            self.masters.scale.value, self.masters.scale.calm = scale
        trainable = self.prepared.trainable
        values, base = below("value/", tensors), below("base/", tensors)
        states: dict[str, dict[str, dict[str, Tensor]]] = {"optimizer": {}, "parked": {}}
        for kind, held in states.items():
            for full, tensor in below(f"{kind}/", tensors).items():
                key, _, owner = full.partition("/")
                held.setdefault(owner, {})[key] = tensor
        odd = sorted((values.keys() | active) - trainable.keys()) or sorted(active - values.keys())
        if odd:
            raise UserError(f"checkpoint {folder} is of another update or model (see {odd[0]})")
        self.entries = below("entries/", tensors)
        self.masters.drop(self.masters.held)
        self.optimizer.state.clear()
        self.prepared.activate(active)
        for name, value in base.items():
            trainable[name].copy_(value)
        # What the schedule only looks at so far is in the checkpoint and has not been stepped.
        moved = base.keys() | states["optimizer"].keys() | states["parked"].keys()
        for name, parameter in trainable.items():
            value, target = values.get(name, parameter.detach()), parameter.detach()
            # What has optimizer state, or more than the model holds of it, has a master, resting
            # under `keep` or training.
            more = (value.dtype, value.shape) != (parameter.dtype, parameter.shape)
            if name in active or name in states["optimizer"] or more:
                self.masters.add(name, parameter, self.entries.get(name))
                target = self.masters.held[name].tensor.detach()
                value = self.masters.held[name].cut(value)
            if target.shape != value.shape:
                raise UserError(f"checkpoint {folder} is of another update or model (see {name})")
            if not torch.equal(target, value):
                moved.add(name)
            target.copy_(value)
        self.masters.publish()
        for name, own in states["optimizer"].items():
            counted = {key: own[key].cpu() for key in own.keys() & set(self.prepared.rule.on_host)}
            master = self.masters.held[name]
            cut = {k: master.cut(v) for k, v in own.items() if v.shape == master.tensor.shape}
            self.optimizer.state[master.tensor] = {**own, **cut, **counted}
        self.parked = {name: sent(own, "cpu") for name, own in states["parked"].items()}
        finish()
        self.visited, self.rebased = moved, set(base)
        self._regroup()
        self.proof.resume(state["pushed"], state["moved"], state["tried"])
