"""What training did to the weights: how many entries changed, where, and in how many directions.

With W0 the base and W the policy, adapters merged, tensor by tensor in fp32:

    changed         share of entries with |W - W0| > t, for t = 0, 1e-8, 1e-5; and of those
                    that differ when both are rounded to bf16
    norm            root of the sum of (W - W0)^2; `relative_norm` is that over W0's own
    effective rank  exp of the entropy of s / sum(s), s the singular values of W - W0
                    (Roy and Vetterli 2007); `rank_share` is that over the smaller side

Source of the thresholds: Mukherjee et al. 2025 (arXiv 2505.11711), who count 1e-5 on bf16
checkpoints; Zhu et al. 2025 (arXiv 2511.08567) hold that a part of such sparsity is what
bf16 cannot show, hence both. Departures: singular values are roots of the eigenvalues of
the smaller Gram matrix in fp64, and those that rounding alone would give are left out. In
a bf16 run W and W0 are what the model holds, not the fp32 masters: W has the noise of rounding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modicum.updates.layout import Place, layout

THRESHOLDS = {"0": 0.0, "1e-8": 1e-8, "1e-5": 1e-5}
BF16 = "bf16"
INSIDE = ("attention", "mlp", "norm", "bias")
OUTSIDE = ("embedding", "final norm", "head", "other")
# Eigenvalues of larger matrices would take minutes a matrix.
LARGEST_SIDE = {"cpu": 2048, "cuda": 8192}
ROWS = 4096  # in fp64 at a time
HALF_SPACING = 2.0**-24  # the largest relative error of rounding to fp32


@dataclass(frozen=True)
class Change:
    """What happened to one tensor."""

    name: str
    layer: int | None
    part: str
    shape: tuple[int, ...]
    entries: int
    changed: Mapping[str, int]
    """Entries that changed, by threshold; `bf16` for those that show in bf16."""
    norm: float
    base_norm: float
    largest: float
    """The largest |W - W0|."""
    effective_rank: float | None
    """None: not a matrix, no change, or too large to take apart."""

    @property
    def moved(self) -> bool:
        """Whether anything in it changed."""
        return self.changed["0"] > 0

    @property
    def full_rank(self) -> int | None:
        """The largest rank that it could have; None for what is not a matrix."""
        return min(self.shape) if len(self.shape) == 2 else None


def measure(policy: nn.Module, base: nn.Module, device: torch.device | None = None) -> list[Change]:
    """The change of every tensor of `policy`, an ordinary model of the same names as `base`.

    The arithmetic is done on `device` (None: the CPU), a tensor at a time. A tied tensor is
    there once.
    """
    new, old = dict(policy.named_parameters()), dict(base.named_parameters())
    odd = new.keys() ^ old.keys()
    assert not odd, f"the merged model and the base do not have the same tensors: {min(odd)}"
    places = layout(base).places
    where = device if device is not None and device.type in LARGEST_SIDE else torch.device("cpu")
    return [_change(name, places[name], new[name], old[name], where) for name in old]


@torch.no_grad()
def _change(name: str, place: Place, new: Tensor, old: Tensor, device: torch.device) -> Change:
    assert new.shape == old.shape, f"{name} has another shape than in the base"
    after, before = (t.detach().to(device, torch.float32) for t in (new, old))
    difference = after - before
    size = difference.abs()
    changed = {key: int((size > limit).sum()) for key, limit in THRESHOLDS.items()}
    changed[BF16] = int((after.bfloat16() != before.bfloat16()).sum())
    base_norm = _norm(before)
    rank = None
    if difference.ndim == 2 and changed["0"] and min(new.shape) <= LARGEST_SIDE[device.type]:
        # A matrix of rounding errors has a largest singular value of about this.
        typical = base_norm / math.sqrt(difference.numel())
        noise = HALF_SPACING * typical * sum(math.sqrt(side) for side in new.shape)
        rank = effective_rank(difference, noise)
    return Change(
        name=name,
        layer=place.layer,
        part=part_of(place),
        shape=tuple(new.shape),
        entries=new.numel(),
        changed=changed,
        norm=_norm(difference),
        base_norm=base_norm,
        largest=float(size.max()),
        effective_rank=rank,
    )


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def part_of(place: Place) -> str:
    """The one part that a tensor is counted in: biases and norms of a block are their own."""
    inside = place.layer is not None
    order = ("bias", "norm", "attention", "mlp") if inside else ("embedding", "head", "norm")
    found = next((part for part in order if part in place.parts), "other")
    return found if inside or found != "norm" else "final norm"


def effective_rank(change: Tensor, noise: float = 0.0) -> float:
    """exp of the entropy of the singular values of a matrix, taken as shares of their sum.

    1 for one direction, n for n equal ones. Singular values up to `noise` are left out, and
    those that are lost in the rounding of the Gram matrix; 0 when nothing is left.
    """
    tall = change if change.shape[0] >= change.shape[1] else change.T
    side = tall.shape[1]
    gram = torch.zeros(side, side, dtype=torch.float64, device=change.device)
    for rows in tall.split(ROWS):
        wide = rows.double()
        gram += wide.T @ wide
    squares = torch.linalg.eigvalsh(gram)
    floor = max(noise**2, side * torch.finfo(torch.float64).eps * float(squares[-1]))
    kept = squares[squares > floor].sqrt()
    if not len(kept):
        return 0.0
    shares = kept / kept.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def summary(changes: Sequence[Change], dtype: str) -> dict[str, Any]:
    """The run's anatomy as `result.json` holds it; shares between 0 and 1.

    `dtype` is that of the run. `changed` is a share of all `entries`, `entries_in_changed`
    counts those of tensors in which anything changed at all. `map` has the relative norm of the change
    for every part of a layer, by layer.
    """
    numbers = sorted({c.layer for c in changes if c.layer is not None})
    parts = [p for p in (*INSIDE, *OUTSIDE) if any(c.part == p for c in changes)]
    by_part = {part: [c for c in changes if c.part == part] for part in parts}
    return {
        "dtype": dtype,
        "tensors": len(changes),
        "tensors_changed": sum(c.moved for c in changes),
        **_together(changes),
        "parts": {part: {**_together(of), **_ranks(of)} for part, of in by_part.items()},
        "layers": [
            {"layer": n, **_together([c for c in changes if c.layer == n])} for n in numbers
        ],
        "map": {
            part: [_together([c for c in of if c.layer == n])["relative_norm"] for n in numbers]
            for part, of in by_part.items()
            if any(c.layer is not None for c in of)
        },
    }


def _together(changes: Sequence[Change]) -> dict[str, Any]:
    """What several tensors come to as one long vector."""
    entries = sum(c.entries for c in changes)
    norm = math.hypot(*(c.norm for c in changes))
    base = math.hypot(*(c.base_norm for c in changes))
    return {
        "entries": entries,
        "entries_in_changed": sum(c.entries for c in changes if c.moved),
        "changed": {
            key: sum(c.changed[key] for c in changes) / entries if entries else 0.0
            for key in (*THRESHOLDS, BF16)
        },
        "norm": norm,
        # What was zero in the base (a bias, say) has no relative change.
        "relative_norm": norm / base if base else None,
    }


def _ranks(changes: Sequence[Change]) -> dict[str, Any]:
    """Means of the effective rank over the matrices that changed and were taken apart."""
    moved = [c for c in changes if c.moved and c.full_rank is not None]
    ranks = [(c.effective_rank, c.full_rank) for c in moved if c.effective_rank is not None]
    return {
        "matrices_changed": len(moved),
        "too_large": len(moved) - len(ranks),
        "effective_rank": sum(r for r, _ in ranks) / len(ranks) if ranks else None,
        "rank_share": sum(r / (full or 1) for r, full in ranks) / len(ranks) if ranks else None,
    }
