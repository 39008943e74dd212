"""Sampling: P prompts, G completions of each, with the log-probs they were drawn at.

A prompt is run once and its keys and values are repeated for the G members; rows that
have ended leave the batch. Prompts of unequal length are padded on the left and masked.

Shapes: P prompt, G member, B = P x G rows, T token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modicum.config import Sampling
from modicum.engine.sampling import choose, distribution, noise
from modicum.models.load import Loaded, inner
from modicum.types import Completion, UserError

Prompt = tuple[int, ...]
SHRINK = 0.75  # ended rows are dropped when fewer than this share of the rows are alive


def rollout(
    model: Any,
    loaded: Loaded,
    prompts: Sequence[Prompt],
    keys: Sequence[tuple[object, ...]],
    group_size: int,
    sampling: Sampling,
    rollout_batch: int = 512,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[Completion, ...]]:
    """`group_size` completions for every prompt, in order.

    `keys[p]` names prompt p in the noise table; the member is added to it. At most
    `rollout_batch` rows (but at least one group) are sampled at a time. `progress` is told
    the number of finished prompts. Raises UserError when a prompt and a completion
    together are longer than the model's positions.
    """
    check_length(prompts, model, sampling)
    per_pass = max(1, rollout_batch // group_size)
    groups: list[tuple[Completion, ...]] = []
    for start in range(0, len(prompts), per_pass):
        part = slice(start, start + per_pass)
        rows = [(*key, member) for key in keys[part] for member in range(group_size)]
        table_BT = np.stack([noise(row, sampling.max_tokens) for row in rows])
        sampler = _Sampler(model, loaded, group_size, sampling)
        done = sampler.run(prompts[part], torch.from_numpy(table_BT).to(loaded.device))
        texts = loaded.tokenizer.batch_decode(
            [tokens for tokens, _ in done],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        made = [
            Completion(tokens, logprobs, text, tokens[-1] in loaded.end_tokens)
            for (tokens, logprobs), text in zip(done, texts, strict=True)
        ]
        groups += [tuple(made[i : i + group_size]) for i in range(0, len(made), group_size)]
        if progress is not None:
            progress(len(groups))
    return groups


def check_length(prompts: Sequence[Prompt], model: Any, sampling: Sampling) -> None:
    """UserError when a prompt and a completion are longer than the model's positions."""
    limit = getattr(inner(model).config, "max_position_embeddings", None)
    longest = max(map(len, prompts)) + sampling.max_tokens
    if limit is not None and longest > limit:
        raise UserError(
            f"a prompt and max_tokens = {sampling.max_tokens} make {longest} tokens;"
            f" the model has positions for {limit}"
        )


class _Sampler:
    """The decoding loop for one batch of rows."""

    def __init__(self, model: Any, loaded: Loaded, group_size: int, sampling: Sampling) -> None:
        self.model = model
        self.loaded = loaded
        self.group_size = group_size
        self.sampling = sampling

    @torch.inference_mode()
    def run(
        self, prompts: Sequence[Prompt], uniforms_BT: Tensor
    ) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        """The sampled tokens and log-probs of every row, ended by its end token."""
        device, steps = self.loaded.device, self.sampling.max_tokens
        logits_BV, cache, mask_BT, position_B = self._prefill(prompts)
        rows_B = torch.arange(len(logits_BV), device=device)  # where each live row's results go
        tokens_BT = torch.zeros(len(rows_B), steps, dtype=torch.long, device=device)
        logprobs_BT = torch.zeros(len(rows_B), steps, device=device)
        length_B = torch.full_like(rows_B, steps)
        alive_B = torch.ones_like(rows_B, dtype=torch.bool)
        ends = torch.tensor(self.loaded.end_tokens, device=device)
        greedy = self.sampling.temperature == 0
        for step in range(steps):
            logprobs_BV = distribution(logits_BV, self.sampling)
            token_B = choose(logprobs_BV, uniforms_BT[rows_B, step], greedy)
            tokens_BT[rows_B, step] = token_B
            logprobs_BT[rows_B, step] = logprobs_BV.gather(-1, token_B[:, None]).squeeze(-1)
            ended_B = alive_B & torch.isin(token_B, ends)
            length_B[rows_B[ended_B]] = step + 1
            alive_B = alive_B & ~ended_B
            count = int(alive_B.sum())
            if count == 0 or step + 1 == steps:
                break
            if count < SHRINK * len(alive_B):
                live = alive_B.nonzero().squeeze(-1)
                cache.batch_select_indices(live)
                rows_B, token_B, alive_B = rows_B[live], token_B[live], alive_B[live]
                position_B = position_B[live]
                mask_BT = None if mask_BT is None else mask_BT[live]
            if mask_BT is not None:
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], 1)
            logits_BV = self.model(
                input_ids=token_B[:, None],
                attention_mask=mask_BT,
                position_ids=position_B[:, None],
                cache=cache,
                use_cache=True,
            ).logits[:, -1]
            position_B = position_B + 1
        return _collect(tokens_BT, logprobs_BT, length_B)

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Any, Tensor | None, Tensor]:
        """Run every prompt once, then repeat its state for the members of its group."""
        device, longest = self.loaded.device, max(map(len, prompts))
        ids_PT = torch.full((len(prompts), longest), self.loaded.end_tokens[0], device=device)
        mask_PT = torch.zeros_like(ids_PT)
        for row, prompt in enumerate(prompts):
            ids_PT[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            mask_PT[row, longest - len(prompt) :] = 1
        padded = not bool(mask_PT.all())
        out = self.model(
            input_ids=ids_PT,
            attention_mask=mask_PT if padded else None,
            position_ids=position_ids(mask_PT),
            use_cache=True,
            logits_to_keep=1,
        )
        cache, times = out.cache, self.group_size
        cache.batch_repeat_interleave(times)
        length_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        mask_BT = mask_PT.repeat_interleave(times, 0) if padded else None
        logits_BV = out.logits[:, -1].repeat_interleave(times, 0)
        return logits_BV, cache, mask_BT, length_P.repeat_interleave(times)


def position_ids(mask_BT: Tensor) -> Tensor:
    """Positions [B, T] that count real tokens from 0; padding on the left stays at 0."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


def _collect(
    tokens_BT: Tensor, logprobs_BT: Tensor, length_B: Tensor
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    tokens, logprobs, lengths = tokens_BT.tolist(), logprobs_BT.tolist(), length_B.tolist()
    return [(tuple(t[:n]), tuple(p[:n])) for t, p, n in zip(tokens, logprobs, lengths, strict=True)]
