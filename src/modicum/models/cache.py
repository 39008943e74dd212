"""The key/value cache of the split forward, for sampling one token of every row at a time.

In a call of the layers it is the attention plan.

Shapes: N living row, P prompt, G member, S = P x G slot, L token of a prompt, T token of a
row, K key/value head, R query heads that share one, H = K x R query head, D size of a head.
"""

from typing import Any

import torch
from torch import Tensor

from modicum.models.attention import ScoreRule, States, read

SHRINK = 0.75  # slots are copied together when at most this share of them is needed


class Cache:
    """Preallocated keys and values for decoding: prompts once, `max_tokens` a slot; member g of
    prompt p has slot p x G + g. A call of the layers brings one token of every row."""

    def __init__(self, length_P: Tensor, group_size: int, max_tokens: int) -> None:
        self.length_P, self.group_size, self.max_tokens = length_P, group_size, max_tokens
        self.padded = len(set(length_P.tolist())) > 1
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> [P, K, L, D] twice
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> [P, K, G, T, D] twice
        self.states: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> of every living row, twice
        self.slot_N: Tensor | None = None  # of every living row; None: all slots live
        self.length = 0  # tokens of each row so far, that of the current call included
        self._masks: dict[int | None, tuple[Tensor | None, Tensor | None]] = {}

    def store(self, layer: int, k_PLKD: Tensor, v_PLKD: Tensor) -> None:
        """Keep the prompts of a layer and make room for its rows."""
        self.prompts[layer] = tuple(x.transpose(1, 2).contiguous() for x in (k_PLKD, v_PLKD))  # type: ignore[assignment]
        count, _, heads, size = k_PLKD.shape
        shape = (count, heads, self.group_size, self.max_tokens, size)
        self.rows[layer] = (k_PLKD.new_empty(shape), v_PLKD.new_empty(shape))

    def store_states(self, layer: int, *left: Tensor) -> None:
        """Give every slot what its prompt has left in a layer with a state."""
        self.states[layer] = tuple(x.repeat_interleave(self.group_size, 0) for x in left)  # type: ignore[assignment]

    def mix(self, module: Any, x_NC: Tensor) -> Tensor:
        """Every row's token is read into the row's state."""
        states = States(self.states[module.layer_idx])
        found_N1C = read(module, x_NC[:, None], states)
        self.states[module.layer_idx] = states.after
        return found_N1C[:, 0]

    def position_N(self) -> Tensor:
        """The position of every living row's next token; call `advance` for it first."""
        position_S = self.length_P.repeat_interleave(self.group_size) + self.length - 1
        return position_S if self.slot_N is None else position_S[self.slot_N]

    def advance(self) -> None:
        """A token of every living row comes next."""
        self.length += 1
        self._masks = {}

    def attend(
        self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, rule: ScoreRule
    ) -> Tensor:
        """Every row's token looks at the prompt, the row's tokens and itself."""
        (k_PKLD, v_PKLD), held, size = self.prompts[layer], self.rows[layer], self.group_size
        for x_PKGTD, x_NKD in zip(held, (k_NKD, v_NKD), strict=True):
            x_PKGD = x_PKGTD[..., self.length - 1, :]
            if self.slot_N is None:
                x_PKGD.copy_(x_NKD.unflatten(0, (len(x_PKGD), -1)).transpose(1, 2))
            else:
                x_PKGD[self.slot_N // size, :, self.slot_N % size] = x_NKD
        k_PKGTD, v_PKGTD = (x[..., : self.length, :] for x in held)
        q_PKGRD = self._spread(q_NHD * rule.scaling, k_PKLD.shape[1])
        # The queries of a group are laid together for the prompt that they share.
        to_prompt = (q_PKGRD.flatten(2, 3) @ k_PKLD.mT).unflatten(2, q_PKGRD.shape[2:4])
        to_row = q_PKGRD @ k_PKGTD.mT
        if rule.softcap is not None:
            to_prompt, to_row = (
                rule.softcap * torch.tanh(x / rule.softcap) for x in (to_prompt, to_row)
            )
        hidden = self._hidden(k_PKLD.shape[2], rule.window)
        for scores, mask in zip((to_prompt, to_row), hidden, strict=True):
            if mask is not None:
                scores.masked_fill_(mask, float("-inf"))
        probs = torch.cat([to_prompt, to_row], -1).softmax(-1, dtype=torch.float32)
        probs = probs.to(v_PKLD.dtype)
        longest = k_PKLD.shape[2]
        from_prompt = probs[..., :longest].flatten(2, 3) @ v_PKLD
        out_PKGRD = probs[..., longest:] @ v_PKGTD + from_prompt.view(q_PKGRD.shape)
        out_SHD = out_PKGRD.transpose(1, 2).flatten(0, 1).flatten(1, 2)
        return out_SHD if self.slot_N is None else out_SHD.index_select(0, self.slot_N)

    def _spread(self, q_NHD: Tensor, heads: int) -> Tensor:
        """Queries of the living rows as [P, K, G, R, D], zero in empty slots."""
        if self.slot_N is not None:
            slots = len(self.length_P) * self.group_size
            q_NHD = q_NHD.new_zeros(slots, *q_NHD.shape[1:]).index_copy_(0, self.slot_N, q_NHD)
        q_PGKRD = q_NHD.unflatten(1, (heads, -1)).unflatten(0, (-1, self.group_size))
        return q_PGKRD.transpose(1, 2).contiguous()

    def _hidden(self, longest: int, window: int | None) -> tuple[Tensor | None, Tensor | None]:
        """True where a row may not look in its prompt and in itself; None: it may everywhere."""
        if window not in self._masks:
            device = self.length_P.device
            at_L, at_T = (torch.arange(n, device=device) for n in (longest, self.length))
            prompt, row = at_L >= self.length_P[:, None], None
            if window is not None:
                here_P1 = self.length_P[:, None] + self.length - 1
                prompt = prompt | (here_P1 - at_L >= window)
                row = self.length - 1 - at_T >= window
            needed = self.padded or window is not None
            self._masks[window] = (prompt[:, None, None, None] if needed else None), row
        return self._masks[window]

    def keep(self, live_N: Tensor) -> None:
        """Only the living rows with these numbers, in rising order, go on."""
        for layer, held in self.states.items():
            self.states[layer] = tuple(x[live_N] for x in held)  # type: ignore[assignment]
        count, size = len(self.length_P), self.group_size
        every = torch.arange(count * size, device=live_N.device)
        slot_N = (every if self.slot_N is None else self.slot_N)[live_N]
        members_P = torch.bincount(slot_N // size, minlength=count)
        alive_P = members_P > 0
        needed = int(alive_P.sum()) * int(members_P.max())
        self.slot_N = slot_N
        if needed > SHRINK * count * size:
            return
        self.group_size = int(members_P.max())
        group_N = (alive_P.cumsum(0) - 1)[slot_N // size]
        first_N = (members_P.cumsum(0) - members_P)[slot_N // size]
        rank_N = torch.arange(len(slot_N), device=slot_N.device) - first_N
        new_N = group_N * self.group_size + rank_N
        old_S = slot_N.new_zeros(needed).index_copy_(0, new_N, slot_N)
        for layer, held in self.rows.items():
            self.prompts[layer] = tuple(x[alive_P] for x in self.prompts[layer])  # type: ignore[assignment]
            self.rows[layer] = tuple(self._moved(x, old_S // size, old_S % size) for x in held)  # type: ignore[assignment]
        self.length_P = self.length_P[alive_P]
        self.slot_N = None if needed == len(new_N) else new_N

    def _moved(self, x_PKGTD: Tensor, prompt_S: Tensor, member_S: Tensor) -> Tensor:
        """The slots (prompt, member), in a new cache for `group_size` members."""
        x_SKTD = x_PKGTD.transpose(1, 2)[prompt_S, member_S, :, : self.length]
        x_PGKTD = x_SKTD.unflatten(0, (-1, self.group_size))
        count, _, heads, _, size = x_PGKTD.shape
        made = x_PKGTD.new_empty(count, heads, self.group_size, self.max_tokens, size)
        made[..., : self.length, :] = x_PGKTD.transpose(1, 2)
        return made
