"""What sampler and trainer share: the sampling distribution, its noise, texts, and the version.

The noise is a table of uniforms that depends on (seed, step, problem, member) and nothing
else. A token is drawn by inverting the cumulative distribution at its uniform. So a
completion does not depend on what it was batched with, beyond the last bits of the
logits, nor on where a run was resumed.

A row ends with the first token after which its text holds a stop string. Texts are decoded and
never put together from tokens, so this is exact whatever the tokenizer: a stop string may begin
and end within tokens, and its characters may be cut between them.

The version of the weights is a hash of the numbers that train, taken where they are used: by the sampler of
the weights that it samples from, by the trainer of its own.

Shapes: B row, V vocabulary, N tokens laid end to end.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modicum.config import Sampling
from modicum.grading.extraction import THINKING, TURN
from modicum.types import Completion, Group, RunStopped

SHARP = 1e-3  # below it a division by the temperature may overflow fp32
LEAST = 1e-30  # below it the distribution is the greedy one


def tempered(logits_NV: Tensor, temperature: float) -> Tensor:
    """Logits [N, V] in fp32 over the temperature, which has no effect at 0 and at 1.

    A very low one is applied to what is left of the maximum, so that the greatest is 0 and
    the rest may overflow to -inf: the greedy distribution, never inf - inf.
    """
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
    Temperature 0 gives the distribution at 1; the caller takes its maximum.
    """
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
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
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
    entropy H has a gradient, d H / d scores = -probs (log probs + H), which takes one more.
    """

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
    cumulative_BV = logprobs_BV.exp().cumsum(-1)
    # Scaled by the last entry, which rounding leaves beside 1.
    level_B1 = (uniform_B[:, None] * cumulative_BV[:, -1:]).to(cumulative_BV.dtype)
    token_B = torch.searchsorted(cumulative_BV, level_B1, right=True).squeeze(-1)
    # A uniform that rounds to the very end must not fall on a token of probability 0.
    last_B = (cumulative_BV < cumulative_BV[:, -1:]).sum(-1)
    return torch.minimum(token_B, last_B)


Completions = tuple[Completion, ...]
TAIL = 64  # tokens that are decoded first; more where these are not enough
UNREADABLE = "\ufffd"  # what half a character is decoded to
OPENED = re.compile(f"(?:{'|'.join(map(re.escape, THINKING))})\\s*\\Z")


class Texts:
    """Decodes tokens, and looks for what ends a row.

    Special tokens are left out, but for those in marks of thinking and in stop strings.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.ends, self.stops = tokenizer, ends, stops
        self.lengths: dict[int, int] = {}
        marks = [*stops, *THINKING, *THINKING.values()]
        added = getattr(tokenizer, "added_tokens_decoder", {}).items()
        special = {number: token.content for number, token in added if token.special}
        self.dropped = {n for n, word in special.items() if not any(word in m for m in marks)}
        self.drops_all = len(self.dropped) == len(special)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of every row of tokens."""
        if not self.drops_all:
            rows = [[token for token in row if token not in self.dropped] for row in rows]
        return self.tokenizer.batch_decode(
            rows, skip_special_tokens=self.drops_all, clean_up_tokenization_spaces=False
        )

    def ended(self, tokens: Sequence[int]) -> bool:
        """Whether the last token is an end token or completes a stop string, the first that does."""
        if tokens[-1] in self.ends:
            return True
        length, size = self._length(tokens[-1]) if self.stops else 0, TAIL
        while length and size < len(tokens):
            (tail,) = self([tokens[-size:]])
            # Where a tail begins it may lack a space or half a character, not behind that.
            if len(tail) > 1 + length + max(map(len, self.stops)) and UNREADABLE not in tail:
                if not self.stop_in(tail):
                    return False
                break
            size *= 2
        return bool(length and self.stop_in(*self([tokens])))

    def _length(self, token: int) -> int:
        """Characters of a token that may complete a stop string, or more; 0: it cannot."""
        if token not in self.lengths:
            # Twice, since the first token of a text may lose the space before it.
            (text,) = self([[token, token]])
            last = {UNREADABLE, *(stop[-1] for stop in self.stops)}
            self.lengths[token] = len(text) if last & set(text) else 0
        return self.lengths[token]

    def stop_in(self, text: str) -> str:
        """The stop string that ends first in a text, the longest of several; or nothing."""
        found = [(text.index(s) + len(s), -len(s), s) for s in self.stops if s in text]
        return min(found)[2] if found else ""

    def cut(self, text: str) -> str:
        """A text up to its stop string, which stays in it unless it begins another's turn."""
        stop = self.stop_in(text)
        before = text.partition(stop)[0] if stop else text
        return before if TURN.match(stop.strip()) else before + stop


def begun(tokenizer: Any, prompt: Sequence[int], group: Completions) -> Completions:
    """The completions, their texts beginning with the mark by which the prompt opened thinking.

    A text that has the mark itself, or nothing, stays as it is.
    """
    tail = tokenizer.decode(prompt[-TAIL:], clean_up_tokenization_spaces=False)
    mark = OPENED.search(tail)
    if mark is None:
        return group
    own = re.compile(rf"\s*(?:{re.escape(mark[0].strip())}|\Z)")
    return tuple(c if own.match(c.text) else replace(c, text=mark[0] + c.text) for c in group)


class AgreementFailed(RunStopped):
    """The completions are not of the policy that is trained."""

    def __init__(self, text: str) -> None:
        super().__init__(f"agreement proof: {text}")


@torch.no_grad()
def version_of(tensors: Mapping[str, Tensor], adapters: Sequence[Any] = ()) -> str:
    """A short hash of all numbers of some tensors, the same on every device.

    Of each tensor the bits are summed and xor-ed, which is one pass over it. Layers of an
    adapter count where they are not as in training: off, or merged into the base.
    """
    odd = [
        f"{number} {layer.disable_adapters} {layer.merged}"
        for number, layer in enumerate(adapters)
        if layer.disable_adapters or layer.merged
    ]
    digest = hashlib.sha256("\n".join(odd).encode())
    marks = []
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        bits = tensor.view(-1).view(torch.int32 if tensor.element_size() == 4 else torch.int16)
        marks += [bits.sum(dtype=torch.int64), torch.hash_tensor(bits).view(torch.int64)]
    if marks:
        digest.update(torch.stack(marks).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """PEFT's layers in a model: what can be switched off and merged."""
    return [m for m in model.modules() if hasattr(m, "disable_adapters") and hasattr(m, "merged")]


def require_origin(groups: Sequence[Group], sampling: Sampling, version: str) -> None:
    """AgreementFailed unless all completions are of these weights and settings."""
    settings = (sampling.temperature, sampling.top_p, sampling.top_k)
    for origin in {c.origin for group in groups for c in group.completions}:
        if origin is None:
            raise AgreementFailed(
                "the sampler does not say from which weights it drew; every Completion needs its"
                " origin = types.Origin(version_of(weights), temperature, top_p, top_k)"
            )
        drawn = (origin.temperature, origin.top_p, origin.top_k)
        if drawn != settings:
            raise AgreementFailed(
                f"the completions were drawn at (temperature, top_p, top_k) = {drawn}, and are"
                f" trained at {settings}"
            )
        if origin.weights != version:
            raise AgreementFailed(
                f"the completions were drawn from other weights (version {origin.weights}) than"
                f" those that are trained ({version}); the sampler is stale"
            )


def require_stops(groups: Sequence[Group], tokenizer: Any, stops: Sequence[str]) -> None:
    """AgreementFailed where a completion goes on after a stop string."""
    texts = Texts(tokenizer, (), stops)
    rows = [c.tokens[:-1] for group in groups if stops for c in group.completions]
    for stop in filter(None, map(texts.stop_in, texts(rows))):
        raise AgreementFailed(
            f"a completion goes on after the stop string {stop!r}; the sampler must obey"
            " `sampling.stop`"
        )
