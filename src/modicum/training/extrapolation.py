"""A run's checkpoints as points of a line: how straight it is, and the policy further along it.

    theta_b + k (theta_b - theta_a)      theta the fp32 numbers that train, a < b two steps

Step 0 is the base. Of every tensor, over step 0 and all checkpoints that are there:

    R2               of the least-squares line of every entry against the step, all entries together
    first direction  share of the largest squared singular value of the stacked changes since step 0

Both come from the products of these changes, a small table. Nothing is trained. Of an adapter theta
are its factors, so that their product leaves the line where k is large."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from modicum import runs
from modicum.config import TrainConfig
from modicum.parts import RunParts
from modicum.training.checkpoint import reload
from modicum.training.session import Session
from modicum.types import UserError

Theta = dict[str, Tensor]


class Extrapolation:
    """Through two steps of a run; `at` is told k, and a call gives the policy there."""

    def __init__(self, saved: Mapping[int, Path], first: int, last: int) -> None:
        self.saved, self.first, self.last, self.k = saved, first, last, 1.0
        self.thetas: dict[int, Theta] = {}

    def __call__(self, folder: Path, config: TrainConfig, parts: RunParts) -> Session:
        """`checkpoint.reload`, moved k times as far as from the first step to the last."""
        session = reload(folder, config, parts, self.saved[self.last], self._begin)
        one, two = self.thetas[self.first], self.thetas[self.last]
        held, optimization = session.prepared.trainable, session.optimization
        with torch.no_grad():
            for name, parameter in {**held, **optimization.masters.tensors}.items():
                parameter.copy_(two[name] + self.k * (two[name] - one[name]))
        optimization.masters.publish()
        session.policy.follow(session.prepared)
        return session

    def _begin(self, session: Session) -> None:
        now = {**session.prepared.trainable, **session.optimization.masters.tensors}
        start = {name: p.detach().float().cpu().clone() for name, p in now.items()}
        self.thetas = {0: start} | {n: _stored(path, start) for n, path in self.saved.items()}

    def straight(self) -> dict[str, dict[str, float | None]]:
        """R2 and the share of the first direction, of every tensor and (with no name) of all."""
        steps, tables = list(self.thetas), dict[str, Tensor]()
        for name, start in self.thetas[0].items():
            moved = torch.stack([(self.thetas[n][name] - start).flatten() for n in steps]).double()
            tables[name] = moved @ moved.T
        tables[""] = torch.stack(list(tables.values())).sum(0)
        return {name: straightness(steps, table) for name, table in tables.items()}


def straightness(steps: list[int], table: Tensor) -> dict[str, float | None]:
    """Both numbers from the products [S, S] of changes; None: nothing moved, or under three points."""
    at = torch.tensor(steps, dtype=torch.float64)
    at = (at - at.mean()) / (at - at.mean()).norm()
    total, spread = float(table.trace()), float(table.trace() - table.mean() * len(steps))
    if total <= 0 or len(steps) < 3:
        return {"r2": None, "first_direction": None}
    share = float(torch.linalg.eigvalsh(table)[-1]) / total
    return {"r2": float(at @ table @ at) / spread, "first_direction": share}


def _stored(path: Path, start: Theta) -> Theta:
    """What trains as a checkpoint has it; what has not trained by then is as at the start."""
    file, _ = runs.read_checkpoint(path)
    with safe_open(file, "pt") as held:
        there = set(held.keys())
        found = {n: held.get_tensor(f"value/{n}") for n in start if f"value/{n}" in there}
    other = [n for n, value in found.items() if value.shape != start[n].shape]
    if other or any(key.startswith("base/") for key in there):
        raise UserError.of("entries_chosen", path=path)
    return start | found
