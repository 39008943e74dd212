"""What the agreement proof measures: log-probs by several ways, and what a difference follows.

`Slope`, of a difference d on a known direction x, is 0 for one policy and 1 for the fault; groups
are its clusters, since members share the rounding of their prompt.

Shapes: N completion tokens laid end to end, C cluster."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import t as student
from torch import Tensor

from modicum.config import Sampling
from modicum.engine.base import Scorer
from modicum.engine.library import LibraryEngine
from modicum.engine.logprobs import logprobs
from modicum.engine.policy import Policy
from modicum.types import Group, Row

Array = np.ndarray[Any, np.dtype[Any]]
Groups = Sequence[Group]

TOKENS, ROWS = 128, 32  # about so many are scored by the library in a check
REHEARSED = (2, 2, 4)  # prompts, completions of each, tokens
CHANCE = 3e-7  # of a false alarm of one slope: five standard errors, more where groups are few
FADE = 0.9  # weight of a check at the next one
FAULTS = {
    "base": ("the base, without what was trained", "what was trained applied twice"),
    "previous": ("the step before", "a step that was taken twice"),
    "temperature": ("a higher temperature", "a lower temperature"),
    "shift": ("another cut of the distribution", "another cut of the distribution"),
}
"""What the sampler's log-probs look like, at a positive and at a negative slope."""


@dataclass
class Scored:
    """The log-probs of some rows' tokens, by several ways."""

    rows: Sequence[Row]
    entropy_N: Array
    ways: dict[str, Array]  # by `trainer`, `library`; `exact`: with the least rounding
    others: dict[str, Array] = field(default_factory=dict)
    """Under the weights of the `base` and of the step before (`previous`)."""

    @property
    def sampler_N(self) -> Array:
        """The sampler's log-probs."""
        return np.array([value for row in self.rows for value in row.sampled or row.logprobs])

    def directions(self) -> dict[str, Array]:
        """What a difference would follow, by the fault."""
        policy_N = self.ways["exact"]
        known = {name: policy_N - other_N for name, other_N in self.others.items()}
        ones = np.ones_like(policy_N)
        return known | {"temperature": policy_N + self.entropy_N, "shift": ones}


@dataclass
class Slope:
    """A regression d = slope x through the origin, pooled over checks; groups are clusters."""

    sums: list[float] = field(default_factory=lambda: [0.0] * 8)
    """Weight, its square, x d, x x, their squares and product over clusters, x x s s."""

    def add(self, d_N: Array, x_N: Array, s_N: Array, group_N: Array) -> None:
        """Add a check to those before, which fade; `s_N` is a token's own rounding."""
        once, twice = FADE, FADE**2
        fades = (once, twice, once, once, twice, twice, twice, twice)
        _, cluster_N = np.unique(group_N, return_inverse=True)
        a_C, b_C = np.bincount(cluster_N, x_N * d_N), np.bincount(cluster_N, x_N * x_N)
        new = [len(a_C), len(a_C), a_C.sum(), b_C.sum(), a_C @ a_C, b_C @ b_C, a_C @ b_C]
        new.append(((x_N * s_N) ** 2).sum())
        held = zip(self.sums, fades, new, strict=True)
        self.sums = [old * fade + float(value) for old, fade, value in held]

    def estimate(self) -> tuple[float, float, float]:
        """(slope, standard error, how many of these it may be away from 0)."""
        weight, square, xd, xx, dd2, xx2, xd2, floor = self.sums
        count = weight**2 / max(square, 1e-300)
        if xx == 0 or count < 2:
            return 0.0, float("inf"), float("inf")
        # Groups of which one has nearly all of x are no more than one.
        freedom = max(min(count, xx**2 / max(xx2, 1e-300)) - 1, 0.1)
        slope = xd / xx
        spread = max(0.0, dd2 - 2 * slope * xd2 + slope**2 * xx2) * count / (count - 1)
        error = max(spread, floor) ** 0.5 / xx
        return slope, error, float(student.isf(CHANCE, freedom))


def doubt(logprob_N: Array) -> float:
    """Sum of 1 - p: tokens that are certain have no rounding to speak of."""
    return float((1 - np.exp(logprob_N)).sum()) + 1e-3 * len(logprob_N)


def over_doubt(d_N: Array, logprob_N: Array) -> float:
    """Sum of |d| over that of 1 - p and of one token more, lest a few say what they cannot."""
    return float(np.abs(d_N).sum()) / (doubt(logprob_N) + 1)


def looks_like(d_N: Array, found: Scored) -> str:
    """What most of a difference is, if one direction explains it."""
    total = float(d_N @ d_N)
    for name, x_N in found.directions().items():
        square = float(x_N @ x_N)
        share = float(x_N @ d_N) ** 2 / max(square * total, 1e-300)
        if share > 0.9:
            slope = float(x_N @ d_N) / square
            return f", as if of {FAULTS[name][slope < 0]} (slope {slope:.3g})"
    return ""


def some(groups: Groups) -> list[Group]:
    """Some completions, the first of every group before the second of any."""
    taken, tokens = [0] * len(groups), 0
    for member in range(max(len(group.completions) for group in groups)):
        for number, group in enumerate(groups):
            if tokens < TOKENS and sum(taken) < ROWS and member < len(group.completions):
                taken[number] = member + 1
                tokens += len(group.completions[member].tokens)
    pairs = zip(groups, taken, strict=True)
    return [replace(g, completions=g.completions[:count]) for g, count in pairs if count]


def rehearsal(policy: Policy, groups: Groups, sampling: Sampling, step: int) -> list[Group]:
    """Some tokens of some prompts, drawn once more; of a sampler elsewhere some that it drew."""
    prompts, members, tokens = REHEARSED
    chosen = groups[:prompts]
    drawn = [group.completions[:members] for group in chosen]
    if policy.sampler.in_process:
        keys = [("agreement", step, number) for number in range(len(chosen))]
        short = replace(sampling, max_tokens=min(tokens, sampling.max_tokens))
        drawn = policy.sample([group.prompt for group in chosen], keys, members, short)
    return [replace(g, completions=c) for g, c in zip(chosen, drawn, strict=True)]


def score(policy: Policy, groups: Groups, sampling: Sampling) -> Scored:
    """Log-probs of completions by library and trainer, without what was kept of their way."""
    told = ((number, g.prompt, c) for number, g in enumerate(groups) for c in g.completions)
    rows = [Row(prompt, c.tokens, c.logprobs, 0.0, number) for number, prompt, c in told]
    library_N, entropy_N = by(LibraryEngine(policy.model, policy.device), rows, sampling)
    trainer_N, _ = by(policy.scorer, rows, sampling)
    ways = {"trainer": trainer_N, "library": library_N, "exact": library_N}
    return Scored(rows, entropy_N, ways)


def by(scorer: Scorer, rows: Sequence[Row], sampling: Sampling) -> tuple[Array, Array]:
    """Log-prob_N and entropy_N by a scorer."""
    found = logprobs(scorer, rows, sampling)
    return as_array(found[0]), as_array(found[1])


def as_array(values_N: Tensor) -> Array:
    """The numbers of a tensor in fp64, on the CPU."""
    return values_N.detach().double().cpu().numpy()
