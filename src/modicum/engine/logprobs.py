"""Log-probs and entropy of sampled tokens, and the gradients of a micro-batch's loss.

Without ever holding all logits: the scorer gives hidden states; the head and the softmax run in
chunks of tokens, so that a vocabulary V costs a chunk x V and not B x T x V. `backward` takes a
chunk's gradient before the next chunk begins, so that a chunk's logits are computed once.
It knows no run: the loop, the planner and a page of one's own call `forward_backward` alike.

Shapes: H hidden, V vocabulary, R row, N completion tokens of the rows laid end to end."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from modicum.config import Sampling
from modicum.engine.base import Scorer, tokens_of
from modicum.engine.policy import Policy
from modicum.engine.sampling import token_logprobs
from modicum.models.device import up
from modicum.objectives.base import Counts, Objective, Tokens
from modicum.types import Row, UserError
from modicum.updates.base import Prepared

Loss = Callable[..., Tensor]
CHUNK_BYTES = 64 * 2**20  # logits of one chunk, in fp32
CUDA_CHUNK_BYTES = 512 * 2**20  # on a GPU, which thinner products leave idle
Sums = dict[str, Any]
"""Numbers that are summed over a step, or tensors of one that the host has not asked for."""
Heard = tuple[Sequence[Row], Tensor, Tensor]
"""Rows, and the log-prob [N] and entropy [N] of their tokens."""


def logprobs(scorer: Scorer, rows: Sequence[Row], sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Log-prob_N (with a graph, if gradients are on) and entropy_N of the rows' tokens, in nats."""
    pack = scorer.pack(rows)
    hidden_NH = scorer.hidden(pack, scorer.trunk(pack))
    return head_logprobs(scorer, hidden_NH, tokens_of(rows, scorer.device), sampling)


def head_logprobs(
    scorer: Scorer, hidden_NH: Tensor, token_N: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Log-prob_N and entropy_N from hidden states, in chunks."""
    size = chunk_size(scorer)
    pairs = zip(hidden_NH.split(size), token_N.split(size), strict=True)
    parts = [token_logprobs(scorer.logits(hidden), token, sampling) for hidden, token in pairs]
    return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts])


def backward(
    scorer: Scorer,
    hidden_NH: Tensor,
    token_N: Tensor,
    sampling: Sampling,
    loss: Loss,
    row_ends: Sequence[int] | None = None,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of a loss that is a sum over tokens; log-prob_N and entropy_N, detached.

    `loss(logprob, part)` is the loss of the tokens in the slice `part`. Gradients are
    added to every `grad` of the head and of what `hidden_NH` came from. With `row_ends`
    parts end there only, for a loss that needs whole rows. With `entropy_learns` it is
    `loss(logprob, part, entropy)`, and the entropy has a gradient too."""

    def of_part(part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """As far as the hidden states, whose gradient is the last."""
        leaf = hidden_NH[part].detach().requires_grad_(hidden_NH.requires_grad)
        both = token_logprobs(scorer.logits(leaf), token_N[part], sampling, entropy_learns)
        logprob, entropy = both
        if not logprob.requires_grad:
            raise UserError("nothing of what trains takes part in what the model makes of a text")
        loss(logprob, part, *([entropy] if entropy_learns else [])).backward()
        return logprob.detach(), entropy.detach(), leaf.grad

    found = [of_part(part) for part in chunks(len(token_N), chunk_size(scorer), row_ends)]
    logprobs, entropies, gradients = zip(*found, strict=True)
    if hidden_NH.requires_grad:
        hidden_NH.backward(torch.cat(gradients))
    return torch.cat(logprobs), torch.cat(entropies)


def chunk_size(scorer: Scorer) -> int:
    """How many tokens have their logits at the same time."""
    size = CUDA_CHUNK_BYTES if scorer.on_cuda else CHUNK_BYTES
    return max(1, size // (4 * scorer.vocabulary))


def chunks(count: int, size: int, row_ends: Sequence[int] | None = None) -> Iterator[slice]:
    """Stretches of at most `size` of `count` tokens.

    With `row_ends` (rising, the last is `count`) they are of whole rows, as many as fit;
    a row that is longer than `size` is a stretch of its own."""
    first = 0
    while first < count:
        stop = min(first + size, count)
        if row_ends is not None:
            within = bisect.bisect_right(row_ends, stop)
            next_end = row_ends[bisect.bisect_right(row_ends, first)]
            stop = max(next_end, row_ends[within - 1] if within else 0)
        yield slice(first, stop)
        first = stop


def forward_backward(
    policy: Policy,
    prepared: Prepared,
    objective: Objective,
    rows: Sequence[Row],
    counts: Counts,
    sampling: Sampling,
    sums: Sums | None,
    reference_N: Tensor | None = None,
    heard: list[Heard] | None = None,
    scale: float = 1.0,
) -> Tensor | None:
    """Add the gradient of the rows' loss, times `scale`, to every `grad` of what trains.

    `counts` are those of the whole batch. What is summed over tokens for the log is added to
    `sums`, if it is given (those of `Objective.token_loss`, `loss`, `tokens` and `entropy`), where
    the model is: `read` has it. The log-probs themselves are added to `heard`. Returns the
    reference's log-probs, computed unless they are given; None when the objective needs none."""
    scorer = policy.scorer
    pack = scorer.pack(rows)
    trunk = scorer.trunk(pack)
    if objective.needs_reference and reference_N is None:
        reference_N = reference_logprobs(scorer, prepared, sampling, rows, (pack, trunk))
    part_N = torch.tensor([p for row in rows for p in row.part or (True,) * len(row.tokens)])
    lengths_R = torch.tensor([len(row.tokens) for row in rows])
    counted_R = torch.tensor([sum(row.part) or len(row.tokens) for row in rows])
    weights_N = objective.weights(counted_R, counts)
    weights_N = weights_N.new_zeros(len(part_N)).masked_scatter(part_N, weights_N)
    token_N, old_N, advantages_N, weights_N, row_N = up(
        scorer.device,
        tokens_of(rows, torch.device("cpu")),
        torch.tensor([value for row in rows for value in row.logprobs]),
        torch.tensor([value for row in rows for value in row.advantages]),
        weights_N,
        torch.arange(len(rows)).repeat_interleave(lengths_R),
    )
    tokens = Tokens(old_N, advantages_N, reference_N, weights_N, row_N)

    def add(key: str, amount: Tensor) -> None:
        if sums is not None:
            sums[key] = sums.get(key, 0.0) + amount.double()

    def loss(policy_N: Tensor, where: slice, entropy_N: Tensor | None = None) -> Tensor:
        value, found = objective.loss(policy_N, tokens.part(where), entropy_N)
        for key, amount in (found | {"loss": value.detach()}).items():
            add(key, amount)
        return value * scale

    ends = list(accumulate(len(row.tokens) for row in rows)) if objective.whole_rows else None
    hidden_NH = scorer.hidden(pack, trunk)
    learns = objective.entropy > 0
    policy_N, entropy_N = backward(scorer, hidden_NH, token_N, sampling, loss, ends, learns)
    add("entropy", entropy_N.sum())
    if sums is not None:
        sums["tokens"] = sums.get("tokens", 0) + len(policy_N)
    if heard is not None:
        heard.append((rows, policy_N, entropy_N))
    return reference_N


def read(sums: Sums) -> dict[str, float]:
    """What was summed, as numbers of the host."""
    told = {key: value for key, value in sums.items() if isinstance(value, Tensor)}
    values = torch.stack(list(told.values())).tolist() if told else []
    return {**sums, **dict(zip(told, values, strict=True))}


@torch.no_grad()
def reference_logprobs(
    scorer: Scorer, prepared: Prepared, sampling: Sampling, rows: Sequence[Row], packed: Any = None
) -> Tensor:
    """Log-probs [N] of the rows' tokens under the reference, which the rows may hold already; `packed`
    are their pack and its trunk, if they are known."""
    if rows[0].reference:
        return up(scorer.device, torch.tensor([p for row in rows for p in row.reference]))[0]
    pack = scorer.pack(rows) if packed is None else packed[0]
    trunk = scorer.trunk(pack) if packed is None else packed[1]
    token_N = tokens_of(rows, scorer.device)
    with prepared.reference():
        hidden_NH = scorer.hidden(pack, trunk if prepared.trunk_is_reference else None)
        return head_logprobs(scorer, hidden_NH, token_N, sampling)[0]
