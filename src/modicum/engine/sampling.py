"""The distribution that is sampled from and trained, and the noise that draws from it.

The noise is a table of uniforms that depends on (seed, step, problem, member) and nothing
else. A token is drawn by inverting the cumulative distribution at its uniform. So a
completion does not depend on what it was batched with, beyond the last bits of the
logits, nor on where a run was resumed.

Shapes: B row, V vocabulary, N tokens laid end to end, K block of S tokens."""

import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from modicum.config import Sampling

SHARP = 1e-3  # below it a division by the temperature may overflow fp32
LEAST = 1e-30  # below it the distribution is the greedy one


def tempered(logits_NV: Tensor, temperature: float) -> Tensor:
    """Logits [N, V] in fp32 over the temperature, which has no effect at 0 and at 1.

    A very low one is applied to what is left of the maximum, so that the greatest is 0 and
    the rest may overflow to -inf: the greedy distribution, never inf - inf."""
    scores_NV = logits_NV.float()
    if temperature in (0.0, 1.0):
        return scores_NV
    if temperature < SHARP:
        scores_NV = scores_NV - scores_NV.amax(-1, keepdim=True).detach()
    return scores_NV / max(temperature, LEAST)


def distribution(logits_BV: Tensor, sampling: Sampling, keep_B: Tensor | None = None) -> Tensor:
    """Log-probs [B, V] in fp32 of the distribution that is sampled from.

    Temperature divides the logits, then top-k, then top-p leave tokens out, and the rest
    is normalised. Tokens as probable as the last of top-k stay too; the most probable token
    stays in whatever top-p is. `keep_B` names a token of each row that stays in whatever happens: the
    trainer passes the sampled one, which a moved policy may have put outside the cut.
    Temperature 0 gives the distribution at 1; the caller takes its maximum."""
    scores_BV = tempered(logits_BV, sampling.temperature)
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        return scores_BV.log_softmax(-1)
    keep_BV = torch.ones_like(scores_BV, dtype=torch.bool)
    if 0 < sampling.top_k < scores_BV.shape[-1]:
        least_B1 = scores_BV.topk(sampling.top_k, -1).values[..., -1:]
        keep_BV &= scores_BV >= least_B1
    if sampling.top_p < 1.0:
        probs_BV = scores_BV.masked_fill(~keep_BV, float("-inf")).softmax(-1)
        sorted_BV, order_BV = torch.sort(probs_BV, stable=True, dim=-1, descending=True)
        before_BV = cumulative(sorted_BV) - sorted_BV
        # The margin keeps rounding from letting one token more in (0.5 + 0.3 >= 0.8).
        within_BV = before_BV < sampling.top_p - 1e-6
        within_BV[..., 0] = True
        keep_BV &= torch.zeros_like(keep_BV).scatter(-1, order_BV, within_BV)
    if keep_B is not None:
        keep_BV = keep_BV.scatter(-1, keep_B[..., None], True)
    return scores_BV.masked_fill(~keep_BV, float("-inf")).log_softmax(-1)


LOWEST = torch.finfo(torch.float32).min


class _TokenLogProbs(torch.autograd.Function):
    """Log-prob and entropy of one token a row; keeps the probabilities and nothing else.

    d logprob / d scores = onehot - probs, so that backward scales the probabilities in
    place: two tables of [N, V] live at a time where plain operations need five. Where the
    entropy H has a gradient, d H / d scores = -probs (log probs + H), which takes one more."""

    @staticmethod
    def forward(ctx: Any, scores_NV: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
        all_NV = scores_NV.log_softmax(-1)
        found_N = all_NV.gather(-1, token_N[:, None]).squeeze(-1)
        probs_NV = all_NV.exp()
        # A token of probability 0 has no part in the entropy: 0 x -inf would be NaN.
        entropy_N = -torch.linalg.vecdot(probs_NV, all_NV.clamp_(min=LOWEST))
        ctx.save_for_backward(probs_NV, token_N)
        ctx.set_materialize_grads(False)
        return found_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[override]
        (probs_NV, token_N), (gradient_N, of_entropy_N) = ctx.saved_tensors, grad_outputs
        if gradient_N is None:  # of the entropy alone
            gradient_N = torch.zeros_like(of_entropy_N)
        slope_NV = -gradient_N[:, None]
        if of_entropy_N is not None:
            all_NV = probs_NV.log().clamp_(min=LOWEST)
            all_NV -= torch.linalg.vecdot(probs_NV, all_NV)[:, None]
            slope_NV = all_NV.mul_(-of_entropy_N[:, None]).add_(slope_NV)
        gradient_NV = probs_NV.mul_(slope_NV)
        return gradient_NV.scatter_add_(-1, token_N[:, None], gradient_N[:, None]), None


def token_logprobs(
    logits_NV: Tensor, token_N: Tensor, sampling: Sampling, entropy_learns: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-prob_N and entropy_N (nats, detached unless it learns) under the sampling distribution."""
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        scores_NV = tempered(logits_NV, sampling.temperature)
        found_N, entropy_N = _TokenLogProbs.apply(scores_NV, token_N)  # type: ignore[misc]
        return found_N, entropy_N if entropy_learns else entropy_N.detach()
    all_NV = distribution(logits_NV, sampling, keep_B=token_N)
    with torch.set_grad_enabled(entropy_learns and torch.is_grad_enabled()):
        probs_NV = all_NV.exp()
        entropy_N = -(probs_NV * all_NV.masked_fill(probs_NV == 0, 0.0)).sum(-1)
    return all_NV.gather(-1, token_N[:, None]).squeeze(-1), entropy_N


def noise(key: tuple[object, ...], length: int) -> np.ndarray:
    """`length` uniforms in [0, 1) that depend on every part of `key`."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    generator = np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "big")))
    return generator.random(length, dtype=np.float32)


def choose(logprobs_BV: Tensor, uniform_B: Tensor, greedy: bool) -> Tensor:
    """The token of each row: the most probable, or where the cumulative passes the uniform."""
    if greedy:
        return logprobs_BV.argmax(-1)
    if logprobs_BV.is_cuda:
        return choose_in_blocks(logprobs_BV.exp(), uniform_B)
    cumulative_BV = logprobs_BV.exp().cumsum(-1)
    # Scaled by the last entry, which rounding leaves beside 1.
    level_B1 = (uniform_B[:, None] * cumulative_BV[:, -1:]).to(cumulative_BV.dtype)
    return _passes(cumulative_BV, level_B1).squeeze(-1)


# On CUDA a running sum of floats has no fixed order, and deterministic mode refuses it. There it is
# the product with a triangle, within blocks of so many tokens and over the sums of the blocks.
BLOCK = 512


def cumulative(x_BV: Tensor) -> Tensor:
    """The sums of what stands up to each place of a row, [B, V]."""
    if not x_BV.is_cuda:
        return x_BV.cumsum(-1)
    x_BKS = blocks_of(x_BV)
    sums_BK = x_BKS.sum(-1)
    found_BKS = running(x_BKS) + (running(sums_BK) - sums_BK)[..., None]
    return found_BKS.flatten(-2)[..., : x_BV.shape[-1]]


def blocks_of(x_BV: Tensor) -> Tensor:
    """A row in blocks [B, K, S], the last filled up with zeros."""
    return F.pad(x_BV, (0, -x_BV.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))


def running(x_BS: Tensor) -> Tensor:
    """Running sums of short rows, by a product with a triangle of ones; they never fall."""
    side = x_BS.shape[-1]
    return x_BS @ torch.ones(side, side, dtype=x_BS.dtype, device=x_BS.device).triu()


def choose_in_blocks(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """`choose` in two steps: the block, then the token in it by what is left of the level."""
    probs_BKS = blocks_of(probs_BV)
    sums_BK = probs_BKS.sum(-1)
    ends_BK = running(sums_BK)
    level_B1 = uniform_B[:, None] * ends_BK[:, -1:]
    block_B1 = _passes(ends_BK, level_B1)
    before_B1 = (ends_BK - sums_BK).gather(-1, block_B1)
    index_B1S = block_B1[..., None].expand(-1, -1, BLOCK)
    within_BS = running(probs_BKS.gather(1, index_B1S).squeeze(1))
    token_B1 = _passes(within_BS, (level_B1 - before_B1).clamp(min=0))
    return (block_B1 * BLOCK + token_B1).squeeze(-1)


def _passes(ends_BS: Tensor, level_B1: Tensor) -> Tensor:
    """Where running sums pass a level, [B, 1]."""
    # A uniform that rounds to the very end must not fall on a token of probability 0.
    last_B1 = (ends_BS < ends_BS[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(ends_BS, level_B1, right=True), last_B1)
