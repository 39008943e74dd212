"""What the agreement proof scores again: some completions of a step, and a few tokens drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from modicum.config import Sampling
from modicum.engine.base import Scorer
from modicum.engine.library import LibraryEngine
from modicum.engine.logprobs import logprobs
from modicum.engine.policy import Policy
from modicum.engine.slopes import Array, Scored
from modicum.types import Group, Row

TOKENS, ROWS = 128, 32  # about so many are scored by the library in a check
REHEARSED = (2, 2, 4)  # prompts, completions of each, tokens


def some(groups: Sequence[Group]) -> list[Group]:
    """Some completions, the first of every group before the second of any."""
    taken, tokens = [0] * len(groups), 0
    for member in range(max(len(group.completions) for group in groups)):
        for number, group in enumerate(groups):
            if tokens < TOKENS and sum(taken) < ROWS and member < len(group.completions):
                taken[number] = member + 1
                tokens += len(group.completions[member].tokens)
    pairs = zip(groups, taken, strict=True)
    return [replace(g, completions=g.completions[:count]) for g, count in pairs if count]


def rehearsal(
    policy: Policy, groups: Sequence[Group], sampling: Sampling, step: int
) -> list[Group]:
    """Some tokens of some prompts, drawn once more; of a sampler elsewhere some that it drew."""
    prompts, members, tokens = REHEARSED
    chosen = groups[:prompts]
    drawn = [group.completions[:members] for group in chosen]
    if policy.sampler.in_process:
        keys = [("agreement", step, number) for number in range(len(chosen))]
        short = replace(sampling, max_tokens=min(tokens, sampling.max_tokens))
        drawn = policy.sample([group.prompt for group in chosen], keys, members, short)
    return [replace(g, completions=c) for g, c in zip(chosen, drawn, strict=True)]


def score(policy: Policy, groups: Sequence[Group], sampling: Sampling) -> Scored:
    """Log-probs of completions by library and trainer, without what was kept of their way."""
    rows = [
        Row(group.prompt, c.tokens, c.logprobs, 0.0, group=number)
        for number, group in enumerate(groups)
        for c in group.completions
    ]
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
