"""Sparse masks: a share of the entries of every tensor trains, all others never move.

Sources: arXiv 2505.11711 and 2511.08567; docs/updates.md has the scores. fisher and taylor
measure in `warmup` steps with a signal, in which nothing moves. After that, and from the start
otherwise, the optimizer holds vectors of differences (models/precision.SparseMaster), so that
weight decay pulls weights to the base. Departure: `run` takes a share of each tensor."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from modicum import runs
from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.models.identity import weights_hash
from modicum.types import UserError
from modicum.updates.base import Scheduled
from modicum.updates.members import Steps
from modicum.updates.schedule import Decision, Named, Schedule, count

VALUE = "value/"  # of a tensor in a checkpoint


def best(scores: Tensor, number: int) -> Tensor:
    """Flat indices of the highest scores in order; of equal ones the first."""
    flat = scores.flatten()
    least = flat.topk(number).values[-1]
    above = (flat > least).nonzero().flatten()
    level = (flat == least).nonzero().flatten()[: number - len(above)]
    return torch.cat([above, level]).sort().values


class Warmup(Schedule):
    """Measures for some steps, in which nothing moves, then says which entries train: by the
    squares of every group's gradient (`fisher`) or by the gradients of steps (`taylor`), summed."""

    remembered = ("seen", "groups", "decided")
    remembered_tensors = ("totals",)
    kept_numbers = 1  # scores

    def __init__(self, method: Any, model: nn.Module, chosen: Named, seed: int) -> None:
        super().__init__()
        self.trainable, self.share, self.steps = chosen, method.keep, method.warmup
        self.ever_by_group = self.fisher = method.by == "fisher"
        self.totals: dict[str, Tensor] = {}
        self.seen = 0  # steps that were measured
        self.groups = 0
        self.decided = False

    def plan(self, total_steps: int) -> None:
        if 0 < total_steps <= self.steps:
            raise UserError.of("long_warmup", steps=self.steps, total=total_steps)

    @property
    def by_group(self) -> bool:  # type: ignore[override]
        return self.fisher and not self.decided

    @property
    def holds(self) -> bool:  # type: ignore[override]
        return not self.decided

    def group_gradients(self, found: Mapping[str, Tensor]) -> None:
        self._add(found)
        self.groups += 1

    def gradients(self, found: Mapping[str, Tensor]) -> None:
        if not self.decided:
            self.seen += 1
            if not self.fisher:
                self._add(found)

    def _add(self, found: Mapping[str, Tensor]) -> None:
        for name, gradient in found.items():
            part = gradient.detach().float()
            total = self.totals.setdefault(name, torch.zeros_like(part))
            total += part.square() if self.fisher else part

    def decide(self, steps: int) -> Decision | None:
        if self.decided or self.seen < self.steps:
            return None
        entries = {}
        for name, parameter in self.trainable.items():
            weight = parameter.detach().float()
            total = self.totals.pop(name, torch.zeros_like(weight))
            scores = total if self.fisher else (total * weight).abs()
            entries[name] = best(scores, self.size(name, parameter))
        self.decided = True
        number = sum(map(len, entries.values()))
        evidence = {"steps": self.seen, "groups": self.groups, "entries": number}
        return Decision(frozenset(self.trainable), evidence, entries)


def past_values(folder: Path, model: nn.Module, wanted: Named) -> Callable[[str], Tensor]:
    """A function from a name to the value that the tensor has in a run's newest checkpoint, the
    fp32 master where there was one. UserError for a run that is not finished, of an adapter or of
    entries, of another model than `model`, or of not all of `wanted`."""
    runs.open_run(folder)
    saved = runs.checkpoints(folder)
    if not saved or not (folder / "result.json").is_file():
        raise UserError(f"{folder} holds no finished run with a checkpoint; it must end first")
    path, state = runs.read_checkpoint(saved[-1])
    source = folder / "config.toml"
    config = from_mapping(TrainConfig, read_toml(source), str(source))
    own, there = dict(model.named_parameters()), set[str]()
    with safe_open(path, "pt") as file:
        for key in (key for key in file.keys() if key.startswith(VALUE)):  # noqa: SIM118
            name, shape = key.removeprefix(VALUE), tuple(file.get_slice(key).get_shape())
            here = tuple(own[name].shape) if name in own else "not"
            if shape != here:
                raise UserError.of("shapes", at=folder, config=config, of=name, by=shape, here=here)
            there.add(name)
    if missing := sorted(wanted.keys() - there):
        raise UserError.of("untrained", at=folder, config=config, n=len(missing), first=missing[0])
    if not next(iter(own.values())).is_meta and weights_hash(model) != state.get("base_hash"):
        raise UserError.of("past_base", folder=folder, config=config)

    def value(name: str) -> Tensor:
        with safe_open(path, "pt", device=str(wanted[name].device)) as file:
            return file.get_tensor(f"{VALUE}{name}")

    return value


class Sparse(Scheduled):
    """A share of the entries of every tensor trains: by chance, size, gradient or a past run."""

    keep: float = 0.05
    by: Literal["random", "smallest", "largest", "fisher", "taylor", "run"] = "random"
    run: str = ""
    warmup: Steps = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise UserError.of("keep", keep=self.keep)
        if (self.by == "run") != bool(self.run):
            raise UserError.of("by_run")

    def begins(self, model: nn.Module, chosen: Named, seed: int) -> Schedule:  # type: ignore[override]
        if self.by in ("fisher", "taylor"):
            return Warmup(self, model, chosen, seed)
        past = past_values(Path(self.run).expanduser(), model, chosen) if self.run else None
        entries = {}
        for name, parameter in chosen.items():
            number, weight = count(self.keep, parameter.numel()), parameter.detach().float()
            # A preview has names and shapes only, and asks for no more than how many.
            if parameter.is_meta:
                entries[name] = torch.empty(number, dtype=torch.int64, device="meta")
                continue
            if past is not None:
                scores = (past(name).float() - weight).abs()
            elif self.by == "random":
                drawn = np.random.default_rng([seed, crc32(name.encode())]).random(weight.numel())
                scores = torch.from_numpy(drawn).to(weight.device)
            else:
                scores = weight.abs() if self.by == "largest" else -weight.abs()
            entries[name] = best(scores, number)
        return Schedule(entries=entries)
