"""Log-probs and entropy of sampled tokens, without ever holding all logits.

The decoder gives hidden states; the head and the softmax run in chunks of tokens that are
recomputed in backward, so that a vocabulary V costs a chunk x V and not B x T x V.
Rows are padded on the right, where causal attention never looks.

Shapes: B row, T token, H hidden, V vocabulary, N completion tokens laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modicum.config import Sampling
from modicum.engine.sampling import distribution
from modicum.models.load import inner
from modicum.types import Row

CHUNK_BYTES = 64 * 2**20  # logits of one chunk, in fp32


def pack(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(ids_BT padded on the right, flat index_N of the states that predict, token_N).

    The state at position prompt + t - 1 predicts completion token t.
    """
    width = max(len(row.prompt) + len(row.tokens) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    index: list[Tensor] = []
    for b, row in enumerate(rows):
        sequence = torch.tensor(row.prompt + row.tokens)
        ids_BT[b, : len(sequence)] = sequence
        first = b * width + len(row.prompt) - 1
        index.append(torch.arange(first, first + len(row.tokens)))
    token_N = torch.tensor([token for row in rows for token in row.tokens])
    return ids_BT.to(device), torch.cat(index).to(device), token_N.to(device)


def logprobs(
    model: Any, rows: Sequence[Row], sampling: Sampling, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Log-prob_N and entropy_N (nats, detached) of the rows' completion tokens.

    Both are of the sampling distribution: temperature, top-k and top-p as at sampling.
    """
    base = inner(model)
    ids_BT, index_N, token_N = pack(rows, base.device)
    hidden_BTH = base.get_decoder()(input_ids=ids_BT, use_cache=False).last_hidden_state
    hidden_NH = hidden_BTH.flatten(0, 1)[index_N]
    head = base.get_output_embeddings()
    text_config = base.config.get_text_config()
    softcap = getattr(text_config, "final_logit_softcapping", None)

    def score(hidden_NH: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = head(hidden_NH)
        if softcap is not None:
            logits_NV = softcap * torch.tanh(logits_NV / softcap)
        all_NV = distribution(logits_NV, sampling, keep_B=token_N)
        with torch.no_grad():
            probs_NV = all_NV.exp()
            entropy_N = -(probs_NV * all_NV.masked_fill(probs_NV == 0, 0.0)).sum(-1)
        return all_NV.gather(-1, token_N[:, None]).squeeze(-1), entropy_N

    size = max(1, chunk_bytes // (4 * text_config.vocab_size))
    parts = []
    for hidden, token in zip(hidden_NH.split(size), token_N.split(size), strict=True):
        # One chunk needs no recomputation: its logits are alive either way.
        if torch.is_grad_enabled() and len(token_N) > size:
            parts.append(checkpoint(score, hidden, token, use_reentrant=False))
        else:
            parts.append(score(hidden, token))
    return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts])
