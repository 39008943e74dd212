"""Log-probs and entropy of sampled tokens, without ever holding all logits.

The scorer gives hidden states; the head and the softmax run in chunks of tokens, so that
a vocabulary V costs a chunk x V and not B x T x V. `backward` takes a chunk's gradient
before the next chunk begins, so that a chunk's logits are computed once; `logprobs`
recomputes them in backward, for losses that need all log-probs at the same time.

Shapes: H hidden, V vocabulary, N completion tokens laid end to end.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modicum.config import Sampling
from modicum.engine.base import Scorer, tokens_of
from modicum.engine.sampling import token_logprobs
from modicum.types import Row, UserError

CHUNK_BYTES = 64 * 2**20  # logits of one chunk, in fp32


def score(
    scorer: Scorer, hidden_NH: Tensor, token_N: Tensor, sampling: Sampling, learns: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-prob_N and entropy_N of tokens (`sampling.token_logprobs`)."""
    return token_logprobs(scorer.logits(hidden_NH), token_N, sampling, learns)


def logprobs(
    scorer: Scorer, rows: Sequence[Row], sampling: Sampling, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Log-prob_N (with a graph, if gradients are on) and entropy_N of the rows' tokens."""
    pack = scorer.pack(rows)
    hidden_NH = scorer.hidden(pack, scorer.trunk(pack))
    return head_logprobs(scorer, hidden_NH, tokens_of(rows, scorer.device), sampling, chunk_bytes)


def head_logprobs(
    scorer: Scorer,
    hidden_NH: Tensor,
    token_N: Tensor,
    sampling: Sampling,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Log-prob_N and entropy_N from hidden states, in chunks."""
    size = max(1, chunk_bytes // (4 * scorer.vocabulary))
    parts = []
    for hidden, token in zip(hidden_NH.split(size), token_N.split(size), strict=True):
        # One chunk needs no recomputation: its logits are alive either way.
        if torch.is_grad_enabled() and len(token_N) > size:
            parts.append(checkpoint(score, scorer, hidden, token, sampling, use_reentrant=False))
        else:
            parts.append(score(scorer, hidden, token, sampling))
    return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts])


def backward(
    scorer: Scorer,
    hidden_NH: Tensor,
    token_N: Tensor,
    sampling: Sampling,
    loss: Callable[..., Tensor],
    chunk_bytes: int = CHUNK_BYTES,
    row_ends: Sequence[int] | None = None,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of a loss that is a sum over tokens; log-prob_N and entropy_N, detached.

    `loss(logprob, part)` is the loss of the tokens in the slice `part`. Gradients are
    added to every `grad` of the head and of what `hidden_NH` came from. With `row_ends`
    parts end there only, for a loss that needs whole rows. With `entropy_learns` it is
    `loss(logprob, part, entropy)`, and the entropy has a gradient too.
    """
    size = max(1, chunk_bytes // (4 * scorer.vocabulary))
    found, entropies, gradients = [], [], []
    for part in chunks(len(token_N), size, row_ends):
        leaf = hidden_NH[part].detach().requires_grad_(hidden_NH.requires_grad)
        logprob, entropy = score(scorer, leaf, token_N[part], sampling, entropy_learns)
        if not logprob.requires_grad:
            raise UserError("nothing of what trains takes part in what the model makes of a text")
        loss(logprob, part, *([entropy] if entropy_learns else [])).backward()
        gradients.append(leaf.grad)
        found.append(logprob.detach())
        entropies.append(entropy.detach())
    if hidden_NH.requires_grad:
        hidden_NH.backward(torch.cat(gradients))
    return torch.cat(found), torch.cat(entropies)


def chunks(count: int, size: int, row_ends: Sequence[int] | None = None) -> Iterator[slice]:
    """Stretches of at most `size` of `count` tokens.

    With `row_ends` (rising, the last is `count`) they are of whole rows, as many as fit;
    a row that is longer than `size` is a stretch of its own.
    """
    first = 0
    while first < count:
        stop = min(first + size, count)
        if row_ends is not None:
            within = bisect.bisect_right(row_ends, stop)
            next_end = row_ends[bisect.bisect_right(row_ends, first)]
            stop = max(next_end, row_ends[within - 1] if within else 0)
        yield slice(first, stop)
        first = stop
