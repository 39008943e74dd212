"""Sampling: P prompts, G completions of each, with the log-probs they were drawn at.

The engine runs a prompt once for the G members, and rows that have ended leave the batch.

Shapes: P prompt, G member, B living row, R = P x G rows begun, T token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modicum.config import Sampling
from modicum.engine.base import Decoding, Engine, Prompt
from modicum.engine.sampling import choose, distribution, noise
from modicum.models.load import Loaded, inner
from modicum.types import Completion, UserError


def rollout(
    engine: Engine,
    loaded: Loaded,
    prompts: Sequence[Prompt],
    keys: Sequence[tuple[object, ...]],
    group_size: int,
    sampling: Sampling,
    rollout_batch: int = 512,
    progress: Callable[[int], None] | None = None,
    trunk_bytes: int = 0,
) -> list[tuple[Completion, ...]]:
    """`group_size` completions for every prompt, in order.

    `keys[p]` names prompt p in the noise table; the member is added to it. At most
    `rollout_batch` rows (but at least one group) are sampled at a time. `progress` is told
    the number of finished prompts. The engine keeps trunks if those of all rows fit into
    `trunk_bytes`. Raises UserError when a prompt and a completion together are longer
    than the model's positions.
    """
    check_length(prompts, loaded.model, sampling)
    keep = num_trunk_bytes(engine, prompts, group_size, sampling.max_tokens) <= trunk_bytes
    per_pass = max(1, rollout_batch // group_size)
    groups: list[tuple[Completion, ...]] = []
    for start in range(0, len(prompts), per_pass):
        part = slice(start, start + per_pass)
        rows = [(*key, member) for key in keys[part] for member in range(group_size)]
        table = np.stack([noise(row, sampling.max_tokens) for row in rows])
        uniforms_RT = torch.from_numpy(table).to(engine.device)
        with torch.inference_mode():
            decoding = engine.decode(prompts[part], group_size, sampling.max_tokens, keep)
            drawn = draw(decoding, uniforms_RT, sampling, loaded.end_tokens)
            trunks = decoding.trunks([len(tokens) for tokens, _ in drawn])
        texts = loaded.tokenizer.batch_decode(
            [tokens for tokens, _ in drawn],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        made = [
            Completion(tokens, logprobs, text, tokens[-1] in loaded.end_tokens, trunk)
            for (tokens, logprobs), text, trunk in zip(drawn, texts, trunks, strict=True)
        ]
        groups += [tuple(made[i : i + group_size]) for i in range(0, len(made), group_size)]
        if progress is not None:
            progress(len(groups))
    return groups


def num_trunk_bytes(
    engine: Engine, prompts: Sequence[Prompt], group_size: int, max_tokens: int
) -> int:
    """The most that the trunks of a rollout can take."""
    tokens = sum(map(len, prompts)) + len(prompts) * group_size * max_tokens
    return tokens * engine.state_bytes


def check_length(prompts: Sequence[Prompt], model: Any, sampling: Sampling) -> None:
    """UserError when a prompt and a completion are longer than the model's positions."""
    limit = getattr(inner(model).config, "max_position_embeddings", None)
    longest = max(map(len, prompts)) + sampling.max_tokens
    if limit is not None and longest > limit:
        raise UserError(
            f"a prompt and max_tokens = {sampling.max_tokens} make {longest} tokens;"
            f" the model has positions for {limit}"
        )


def draw(
    decoding: Decoding, uniforms_RT: Tensor, sampling: Sampling, end_tokens: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """The sampled tokens and log-probs of every row, up to and with its end token."""
    device, (count, steps) = uniforms_RT.device, uniforms_RT.shape
    row_B = torch.arange(count, device=device)  # where each living row's results go
    tokens_RT = torch.zeros(count, steps, dtype=torch.long, device=device)
    logprobs_RT = torch.zeros(count, steps, device=device)
    length_R = torch.full_like(row_B, steps)
    ends = torch.tensor(end_tokens, dtype=torch.long, device=device)
    greedy = sampling.temperature == 0
    for step in range(steps):
        logprobs_BV = distribution(decoding.logits_BV, sampling)
        token_B = choose(logprobs_BV, uniforms_RT[row_B, step], greedy)
        tokens_RT[row_B, step] = token_B
        logprobs_RT[row_B, step] = logprobs_BV.gather(-1, token_B[:, None]).squeeze(-1)
        ended_B = torch.isin(token_B, ends)
        live_B = (~ended_B).nonzero().squeeze(-1)
        if len(live_B) < len(row_B):
            length_R[row_B[ended_B]] = step + 1
            row_B, token_B = row_B[live_B], token_B[live_B]
        if not len(live_B) or step + 1 == steps:
            break
        if len(live_B) < len(ended_B):
            decoding.keep(live_B)
        decoding.advance(token_B)
    rows = zip(tokens_RT.tolist(), logprobs_RT.tolist(), length_R.tolist(), strict=True)
    return [(tuple(tokens[:n]), tuple(found[:n])) for tokens, found, n in rows]
