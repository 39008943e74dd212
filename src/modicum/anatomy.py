"""What training did to the weights: how many entries changed, where, and in how many directions.

docs/anatomy.md has the numbers, of W0 the base and W the policy, adapters merged, in fp32. Singular
values are roots of the eigenvalues of the smaller Gram matrix in fp64, but for those of rounding."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modicum.report.words import say
from modicum.types import Frozen
from modicum.updates.layout import Place, layout

THRESHOLDS = {"0": 0.0, "1e-8": 1e-8, "1e-5": 1e-5}
BF16 = "bf16"
INSIDE = ("attention", "mlp", "norm", "bias")
OUTSIDE = ("embedding", "final norm", "head", "other")
# Eigenvalues of larger matrices would take minutes a matrix.
LARGEST_SIDE = {"cpu": 2048, "cuda": 8192}
ROWS = 4096  # in fp64 at a time
HALF_SPACING = 2.0**-24  # the largest relative error of rounding to fp32
MOST_ENERGY, ROUNDING = 0.9, 1e-12
RANKS = ("effective_rank", "rank_share", "participation_ratio", "directions_90")
MANY, FEW = 64, 3  # directions that a change may have, and has where it is a collapse


class Change(Frozen):
    """What happened to one tensor."""

    name: str
    layer: int | None
    part: str
    shape: tuple[int, ...]
    entries: int
    changed: Mapping[str, int]  # entries, by threshold; `bf16`: those that show in bf16
    norm: float
    base_norm: float
    largest: float  # the largest |W - W0|
    effective_rank: float | None  # these: None for no matrix, no change, or one too large
    participation_ratio: float | None = None
    directions_90: int | None = None
    full_rank: int | None = None  # the largest rank that it could have; None for what is no matrix

    @property
    def moved(self) -> bool:
        """Whether anything in it changed."""
        return self.changed["0"] > 0

    @property
    def rank_share(self) -> float:
        """The effective rank, as a share of the largest that it could have."""
        return (self.effective_rank or 0.0) / (self.full_rank or 1)


def measure(policy: nn.Module, base: nn.Module, device: torch.device | None = None) -> list[Change]:
    """The change of every tensor of `policy`, named as in `base`, tied ones once; made on `device`."""
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
    both = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in (difference, before))
    norm, base_norm = map(float, both)
    ranks: tuple[float | None, float | None, int | None] = (None, None, None)
    full = min(new.shape) if new.ndim == 2 else None
    if full is not None and changed["0"] and full <= LARGEST_SIDE[device.type]:
        # A matrix of rounding errors has a largest singular value of about this.
        typical = base_norm / math.sqrt(difference.numel())
        noise = HALF_SPACING * typical * sum(math.sqrt(side) for side in new.shape)
        ranks = directions(singular_values(difference, noise))
    which = (name, place.layer, part_of(place), tuple(new.shape), new.numel())
    return Change(*which, changed, norm, base_norm, float(size.max()), *ranks, full)


def part_of(place: Place) -> str:
    """The one part that a tensor is counted in: biases and norms of a block are their own."""
    inside = place.layer is not None
    order = ("bias", "norm", "attention", "mlp") if inside else ("embedding", "head", "norm")
    found = next((part for part in order if part in place.parts), "other")
    return found if inside or found != "norm" else "final norm"


def directions(values: Tensor) -> tuple[float, float, int]:
    """Of singular values, the largest first: effective rank (exp of the entropy of their shares),
    participation ratio, and how many carry 90 % of the energy; all 0 when there are none."""
    if not len(values):
        return 0.0, 0.0, 0
    shares, energy = values / values.sum(), values.square() / values.square().sum()
    enough = int((energy.cumsum(0) < MOST_ENERGY - ROUNDING).sum()) + 1
    entropy = -float((shares * shares.log()).sum())
    return math.exp(entropy), 1 / float(energy.square().sum()), enough


def singular_values(change: Tensor, noise: float = 0.0) -> Tensor:
    """Those of a matrix in fp64, the largest first; not those up to `noise`, or lost in rounding."""
    tall = change if change.shape[0] >= change.shape[1] else change.T
    side = tall.shape[1]
    gram = torch.zeros(side, side, dtype=torch.float64, device=change.device)
    for rows in tall.split(ROWS):
        wide = rows.double()
        gram += wide.T @ wide
    squares = torch.linalg.eigvalsh(gram)
    floor = max(noise**2, side * torch.finfo(torch.float64).eps * float(squares[-1]))
    return squares[squares > floor].sqrt().flip(0)


def alarm(changes: Sequence[Change], rank: int | None, rewards: Sequence[float]) -> str:
    """A sentence where changes keep to few directions while reward falls, or nothing. `rank` is an
    adapter's, the most that a change can have; `rewards` the mean one of every step."""
    wide = [c for c in changes if min(c.full_rank or 0, rank or MANY) >= MANY]
    found = [(c.participation_ratio, c.name) for c in wide if c.participation_ratio]
    few, fall = sorted(one for one in found if one[0] < FEW), fallen(rewards)
    limits = {"many": MANY, "least": FEW}
    return say("collapse", fall=fall, few=few, found=found, **limits) if few and fall else ""


def fallen(rewards: Sequence[float]) -> tuple[float, float] | None:
    """The mean of the best fifth of the steps and of the last, where that is lower beyond chance.
    By three standard errors of their difference, from the spread within fifths; None: it is not."""
    if (size := len(rewards) // 5) < 2:
        return None
    fifths = torch.tensor(rewards[-5 * size :], dtype=torch.float64).view(5, size)
    means, spread = fifths.mean(1), fifths.var(1).mean()
    best, last = float(means.max()), float(means[-1])
    return (best, last) if best - last > 3 * math.sqrt(2 * float(spread) / size) else None


def summary(changes: Sequence[Change], dtype: str) -> dict[str, Any]:
    """The run's anatomy as `result.json` holds it (docs/anatomy.md); `dtype` is that of the run."""
    numbers = sorted({c.layer for c in changes if c.layer is not None})
    by_part = {part: [c for c in changes if c.part == part] for part in (*INSIDE, *OUTSIDE)}
    by_part = {part: of for part, of in by_part.items() if of}
    by_layer = {n: [c for c in changes if c.layer == n] for n in numbers}
    return {
        "dtype": dtype,
        "tensors": len(changes),
        "tensors_changed": sum(c.moved for c in changes),
        **_together(changes),
        "parts": {part: {**_together(of), **_ranks(of)} for part, of in by_part.items()},
        "layers": [{"layer": n, **_together(of)} for n, of in by_layer.items()],
        "map": {
            part: [_together([c for c in of if c.layer == n])["relative_norm"] for n in numbers]
            for part, of in by_part.items()
            if any(c.layer is not None for c in of)
        },
    }


def _together(changes: Sequence[Change]) -> dict[str, Any]:
    entries = sum(c.entries for c in changes)
    norm = math.hypot(*(c.norm for c in changes))
    base = math.hypot(*(c.base_norm for c in changes))
    changed = {key: sum(c.changed[key] for c in changes) for key in (*THRESHOLDS, BF16)}
    return {
        "entries": entries,
        "entries_in_changed": sum(c.entries for c in changes if c.moved),
        "changed": {key: many / entries if entries else 0.0 for key, many in changed.items()},
        "norm": norm,
        # What was zero in the base (a bias, say) has no relative change.
        "relative_norm": norm / base if base else None,
    }


def _ranks(changes: Sequence[Change]) -> dict[str, Any]:
    moved = [c for c in changes if c.moved and c.full_rank is not None]
    apart = [c for c in moved if c.effective_rank is not None]
    many = len(apart)
    means = {n: sum(getattr(c, n) for c in apart) / many if many else None for n in RANKS}
    return {"matrices_changed": len(moved), "too_large": len(moved) - many, **means}
