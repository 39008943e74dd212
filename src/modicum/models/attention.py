"""Attention of the split forward, over sequences laid end to end: prompts, each once, then rows.

Where a layer's attention mask would be it gets a plan, which knows what may look at what. Layers that
carry a state (Qwen3.5, Qwen3-Next) get `States` in their cache's place: a prompt is read once, filled
up on the left with zeros, and every row goes on from what it left, gradients included.

Shapes: N tokens laid end to end, P prompt, L token of a prompt, B row, T token of a row,
M places of the padded tables [P, L] and [B, T], K key/value head, H query head, D size of
a head, S key, C channel of the convolution."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from modicum.models import flash
from modicum.models.device import up
from modicum.types import Frozen

NAME = "modicum"


class ScoreRule(Frozen):
    """How scores are made: their factor, Gemma's cap, and how far back a token looks."""

    scaling: float
    softcap: float | None
    window: int | None


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, plan: Any, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    """transformers' attention function `modicum`: hands the layer's tensors to its plan."""
    q_NHD, k_NKD, v_NKD = (x[0].transpose(0, 1) for x in (query, key, value))
    rule = ScoreRule(scaling, more.get("softcap"), more.get("sliding_window"))
    return plan.attend(module.layer_idx, q_NHD, k_NKD, v_NKD, rule)[None], None


AttentionInterface.register(NAME, attention)


def weigh(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask: Tensor | None, rule: ScoreRule
) -> Tensor:
    """Attention [B, T, H, D] of queries to S keys; `mask` is true where a query may look, and
    broadcast to [B, 1, T, S]. Causal where it is None."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    if rule.softcap is None:
        how: Any = {"attn_mask": mask, "is_causal": mask is None, "scale": rule.scaling}
        return F.scaled_dot_product_attention(q, k, v, **how).transpose(1, 2)
    scores = rule.softcap * torch.tanh(q @ k.mT * rule.scaling / rule.softcap)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    probs = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    return (probs.to(v.dtype) @ v).transpose(1, 2)


class States:
    """In the place of the library's cache, for one call of one layer; nothing is in place."""

    def __init__(self, before: tuple[Tensor, Tensor] | None = None) -> None:
        self.convolution, self.table = before or (None, None)

    @property
    def after(self) -> tuple[Tensor, Tensor]:
        """What the layer has left: the convolution's last inputs and the table, a row each."""
        assert self.convolution is not None and self.table is not None
        return self.convolution, self.table

    def get_conv_state(self, *_: Any, **__: Any) -> Tensor | None:
        """The convolution's last inputs [B, C, kernel]; None at the beginning."""
        return self.convolution

    def get_recurrent_state(self, *_: Any, **__: Any) -> Tensor | None:
        return self.table

    def is_recording_past(self, _: int) -> bool:
        """Always: the layer then changes nothing in place that a gradient may need."""
        return True

    def update_conv_state(self, new_BCT: Tensor, _: int, conv_kernel_size: int) -> Tensor:
        """The last inputs and the new ones; zeros stand before the beginning."""
        before = self.convolution
        if before is None:
            before = new_BCT.new_zeros(*new_BCT.shape[:2], conv_kernel_size)
        whole = torch.cat([before, new_BCT], -1)
        self.convolution = whole[..., -conv_kernel_size:]
        return whole

    def update_recurrent_state(self, table: Tensor, _: int) -> None:
        self.table = table


def mix(module: Any, hidden_states: Tensor, attention_mask: Any = None, **_: Any) -> Tensor:
    """What `module(hidden_states)` gives; the plan in the mask's place knows what follows what."""
    return attention_mask.mix(module, hidden_states[0])[None]


def read(module: Any, x_BTH: Tensor, states: States) -> Tensor:
    """The layer's own forward of rows that go on from `states`."""
    return type(module).forward(module, hidden_states=x_BTH, cache=states)


class Packed:
    """Whole sequences: all prompts, then all rows that each go on from one of them, which may be
    none. `row_prompts[b]` is the prompt of row b. A `cache` stores the prompts' keys and values [P, L,
    K, D] of every layer, and what they leave in a layer with a state. `more` are tensors of the caller
    that go to the device in the same copy."""

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        row_prompts: Sequence[int],
        row_lengths: Sequence[int],
        device: torch.device,
        cache: Any = None,
        more: Sequence[Tensor] = (),
    ) -> None:
        self.cache = cache
        # All on the host, which knows the lengths and need not ask the device for any number.
        lengths = torch.tensor([*prompt_lengths, *row_lengths])
        starts, count = lengths.cumsum(0) - lengths, len(prompt_lengths)
        length_P, prompt_B = lengths[:count], torch.tensor(row_prompts, dtype=torch.long)
        prompt_PL, prompt_there = _padded(starts[:count], length_P)
        row_BT, row_there = _padded(starts[count:], lengths[count:])
        where_N = torch.cat([prompt_there.flatten(), row_there.flatten()]).nonzero().squeeze(-1)
        # Of every place in the padded tables, prompts before rows: its token.
        token_M = torch.cat([prompt_PL.flatten(), row_BT.flatten()])
        self.tight = len(token_M) == len(where_N)
        self.alike = len({prompt_lengths[prompt] for prompt in row_prompts}) == 1
        # For layers with a state prompts are filled up on the left, so that the last place is
        # their end; then where the real tokens of prompts and of rows are.
        longest = prompt_PL.shape[1]
        at_PL = torch.arange(longest) - (longest - length_P[:, None])
        left = prompt_PL.gather(1, at_PL.clamp(min=0)), at_PL >= 0
        ends = [there.flatten().nonzero().squeeze(-1) for there in (at_PL >= 0, row_there)]
        tables = length_P, prompt_B, prompt_PL, row_BT
        row_at = torch.arange(row_BT.shape[1]) + length_P[prompt_B][:, None]
        every = [torch.arange(longest).expand(prompt_PL.shape), row_at]
        positions_N = torch.cat([part.flatten() for part in every])[where_N]
        made = up(device, *tables, where_N, token_M, positions_N, *left, *ends, *more)
        self.length_P, self.prompt_B, self.prompt_PL, self.row_BT = made[:4]
        self.where_N, self.token_M, self.positions_N = made[4:7]
        self.left_PL, self.left_there_PL, self.left_N, self.right_N, *self.more = made[7:]
        self._masks: dict[int | None, tuple[Tensor | None, Tensor]] = {}
        self.lengths = (prompt_lengths, row_prompts, row_lengths)
        self._keys: flash.Keys | None = None

    def attend(
        self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, rule: ScoreRule
    ) -> Tensor:
        """Prompts look at themselves, rows at their prompt and themselves, all backwards."""
        head = q_NHD.shape[-1]
        if self.cache is None and flash.fits(q_NHD.device, q_NHD.dtype, head, rule.softcap):
            if self._keys is None:
                self._keys = flash.keys_of(*self.lengths, self.where_N.device)
            return flash.attend(self._keys, q_NHD, k_NKD, v_NKD, rule.scaling, rule.window)
        if not self.tight:
            q_NHD, k_NKD, v_NKD = (
                _Spread.apply(x, self.token_M, self.where_N) for x in (q_NHD, k_NKD, v_NKD)
            )
        (q, q_rows), (k, k_rows), (v, v_rows) = map(self._tables, (q_NHD, k_NKD, v_NKD))
        if self.cache is not None:
            self.cache.store(layer, k, v)
        prompt_mask, row_mask = self._mask(rule.window)
        out_MHD = weigh(q, k, v, prompt_mask, rule).flatten(0, 1)
        if self.row_BT.numel():
            k_all = torch.cat([k.index_select(0, self.prompt_B), k_rows], 1)
            v_all = torch.cat([v.index_select(0, self.prompt_B), v_rows], 1)
            out_BTHD = weigh(q_rows, k_all, v_all, row_mask, rule)
            out_MHD = torch.cat([out_MHD, out_BTHD.flatten(0, 1)])
        return out_MHD if self.tight else out_MHD.index_select(0, self.where_N)

    def mix(self, module: Any, x_NC: Tensor) -> Tensor:
        """Prompts are read from their beginning, rows from where their prompt has ended."""
        prompts_PLC = x_NC[self.left_PL] * self.left_there_PL[..., None].to(x_NC.dtype)
        states = States()
        found_NC = read(module, prompts_PLC, states).flatten(0, 1)[self.left_N]
        if self.cache is not None:
            self.cache.store_states(module.layer_idx, *states.after)
        if not self.row_BT.numel():
            return found_NC
        convolution, table = (x.index_select(0, self.prompt_B) for x in states.after)
        found_BTC = read(module, x_NC[self.row_BT], States((convolution, table)))
        return torch.cat([found_NC, found_BTC.flatten(0, 1)[self.right_N]])

    def _tables(self, x_MKD: Tensor) -> tuple[Tensor, Tensor]:
        """Padded tokens as tables of prompts [P, L, K, D] and of rows [B, T, K, D]."""
        prompts, rows = x_MKD.split([self.prompt_PL.numel(), self.row_BT.numel()])
        return prompts.unflatten(0, self.prompt_PL.shape), rows.unflatten(0, self.row_BT.shape)

    def _mask(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """Masks of prompts and of rows for a window; None is plainly causal."""
        if window not in self._masks:
            device = self.where_N.device
            at_L = torch.arange(self.prompt_PL.shape[1], device=device)
            at_T = torch.arange(self.row_BT.shape[1], device=device)
            prompt = None
            if window is not None and window < len(at_L):
                back = at_L[:, None] - at_L
                prompt = (back >= 0) & (back < window)
            length_B = self.length_P[self.prompt_B]
            if self.alike:
                length_B = length_B[:1]
            shape = (len(length_B), len(at_T), len(at_L))
            to_prompt = (at_L < length_B[:, None, None]).expand(shape)
            to_row = (at_T <= at_T[:, None]).expand(len(length_B), -1, -1)
            if window is not None:
                here_BT = length_B[:, None] + at_T
                to_prompt = to_prompt & (here_BT[..., None] - at_L < window)
                to_row = to_row & (at_T[:, None] - at_T < window)
            self._masks[window] = prompt, torch.cat([to_prompt, to_row], -1)[:, None]
        return self._masks[window]


def _padded(start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Token numbers as a table, short sequences filled with their last one; what is real."""
    longest = int(length.max()) if len(length) else 0
    at = torch.arange(longest, device=start.device)
    last = (length - 1)[:, None]  # of an empty one: the token before it, never used
    return start[:, None] + torch.minimum(at, last), at < length[:, None]


class _Spread(torch.autograd.Function):
    """Tokens laid end to end, as padded ones; the gradient reads the real ones back, where plain
    `index_select` would add every gradient into a table of zeros."""

    @staticmethod
    def forward(ctx: Any, x_NKD: Tensor, token_M: Tensor, where_N: Tensor) -> Tensor:
        ctx.save_for_backward(where_N)
        return x_NKD.index_select(0, token_M)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (where_N,) = ctx.saved_tensors
        return grad_outputs[0].index_select(0, where_N), None, None
