"""The key/value caches of the split forward, for sampling one token of every row at a time.

In a call of the layers one is the attention plan.

Shapes: N living row (of `Static` any row that is run), P prompt, G member, S = P x G slot, L token of a prompt, T token of a
row, K key/value head, R query heads that share one, H = K x R query head, D size of a head."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modicum.models.attention import ScoreRule, States, read
from modicum.models.device import index

SHRINK = 0.75  # slots are copied together when at most this share of them is needed
LEAST = 256  # tokens that a slot has room for at first


def room_for(length: int, most: int) -> int:
    """Tokens that a slot has room for when it has `length`: doubled until they fit, up to `most`."""
    return min(most, max(LEAST, 1 << max(0, length - 1).bit_length()))


class Cache:
    """Keys and values for decoding: prompts once, and room for the tokens of every row, which is
    doubled when it is full; member g of prompt p has slot p x G + g. A call of the layers brings one
    token of every row. Which rows live is known on the host: nothing is asked of the device."""

    def __init__(
        self, lengths: Sequence[int], group_size: int, max_tokens: int, device: torch.device
    ) -> None:
        self.length_P = index(lengths, device)
        self.group_size, self.max_tokens = group_size, max_tokens
        self.padded = len(set(lengths)) > 1
        self.prompts: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> [P, K, L, D] twice
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> [P, K, G, T, D] twice
        self.states: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> of every living row, twice
        self.slots: Sequence[int] = range(len(lengths) * group_size)  # of every living row
        self.slot_N: Tensor | None = None  # the same; None: all slots live
        self.place_N: tuple[Tensor, Tensor] | None = None  # the same, as prompt and member
        self.start_N = self.length_P.repeat_interleave(group_size)  # tokens of its prompt
        self.length = 0  # tokens of each row so far, that of the current call included
        self.room = room_for(1, max_tokens)
        self._masks: dict[int | None, tuple[Tensor | None, Tensor | None]] = {}

    def store(self, layer: int, k_PLKD: Tensor, v_PLKD: Tensor) -> None:
        """Keep the prompts of a layer and make room for its rows."""
        self.prompts[layer] = tuple(x.transpose(1, 2).contiguous() for x in (k_PLKD, v_PLKD))  # type: ignore[assignment]
        count, _, heads, size = k_PLKD.shape
        shape = (count, heads, self.group_size, self.room, size)
        self.rows[layer] = (self.empty(k_PLKD, shape), self.empty(v_PLKD, shape))

    def empty(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Room for keys or values; what is never written is never looked at."""
        return like.new_empty(shape)

    def store_states(self, layer: int, *left: Tensor) -> None:
        """Give every slot what its prompt has left in a layer with a state."""
        self.states[layer] = tuple(x.repeat_interleave(self.group_size, 0) for x in left)  # type: ignore[assignment]

    def mix(self, module: Any, x_NC: Tensor) -> Tensor:
        """Every row's token is read into the row's state."""
        states = States(self.states[module.layer_idx])
        found_N1C = read(module, x_NC[:, None], states)
        self.states[module.layer_idx] = states.after
        return found_N1C[:, 0]

    @property
    def shape(self) -> Any:
        """While this stays, so do all tensors; here they never do."""
        return self.length

    def spread(self, token_N: Tensor) -> Tensor:
        """The tokens of the rows that are run: the living ones alone."""
        return token_N

    def living(self, x_NC: Tensor) -> Tensor:
        """Of what was made of rows that are run: that of the living."""
        return x_NC

    @property
    def positions_N(self) -> Tensor:
        """The position of the token of every row that is run; call `advance` for it first."""
        return self.start_N + (self.length - 1)

    def advance(self) -> None:
        """A token of every living row comes next."""
        self.skip_to(self.length + 1)
        self._masks = {}

    def skip_to(self, length: int) -> None:
        """Rows have so many tokens from now on, and room for them."""
        self.length = length
        if length > self.room:
            self.room = room_for(length, self.max_tokens)
            for layer, (k_PKGTD, v_PKGTD) in self.rows.items():  # one layer is there twice
                self.rows[layer] = self._roomy(k_PKGTD), self._roomy(v_PKGTD)

    def attend(
        self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, rule: ScoreRule
    ) -> Tensor:
        """Every row's token looks at the prompt, the row's tokens and itself."""
        k_PKGTD, v_PKGTD = self._written(layer, k_NKD, v_NKD)
        k_PKLD, v_PKLD = self.prompts[layer]
        q_PKGRD = self._spread(q_NHD * rule.scaling, k_PKLD.shape[1])
        # The queries of a group are laid together for the prompt that they share.
        to_prompt = (q_PKGRD.flatten(2, 3) @ k_PKLD.mT).unflatten(2, q_PKGRD.shape[2:4])
        to_row = q_PKGRD @ k_PKGTD.mT
        if (cap := rule.softcap) is not None:
            to_prompt, to_row = (cap * torch.tanh(x / cap) for x in (to_prompt, to_row))
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

    def _written(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of rows, those of this call included."""
        for x_PKGTD, x_NKD in zip(self.rows[layer], new, strict=True):
            x_PKGD = x_PKGTD[..., self.length - 1, :]
            if self.place_N is None:
                x_PKGD.copy_(x_NKD.unflatten(0, (len(x_PKGD), -1)).transpose(1, 2))
            else:
                prompt_N, member_N = self.place_N
                x_PKGD[prompt_N, :, member_N] = x_NKD
        return tuple(x[..., : self.length, :] for x in self.rows[layer])

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

    def keep(self, live: Sequence[int]) -> None:
        """Only the living rows with these numbers, in rising order, go on."""
        live_N = index(live, self.length_P.device)
        self.states = {layer: (x[live_N], y[live_N]) for layer, (x, y) in self.states.items()}
        self.start_N = self.start_N[live_N]
        self.slots = [self.slots[number] for number in live]
        count, (needed, _) = len(self.length_P) * self.group_size, self._needed()
        if needed <= SHRINK * count:
            self._compact()
            count = needed
        self.slot_N = self.place_N = None
        if len(self.slots) < count:
            self.slot_N = slot_N = index(self.slots, live_N.device)
            self.place_N = slot_N // self.group_size, slot_N % self.group_size

    def _needed(self) -> tuple[int, Counter[int]]:
        """How many slots the living rows need, and how many rows of each prompt live."""
        members = Counter(slot // self.group_size for slot in self.slots)
        return len(members) * max(members.values()), members

    def _compact(self) -> Tensor:
        """Leave out prompts without rows, and slots that no prompt needs; where each slot was."""
        (needed, members), device = self._needed(), self.length_P.device
        before, self.group_size = self.group_size, max(members.values())
        starts = range(0, len(members) * self.group_size, self.group_size)
        both = zip(starts, members.values(), strict=True)
        slots = [slot for start, living in both for slot in range(start, start + living)]
        were = [0] * needed
        for slot, was in zip(slots, self.slots, strict=True):
            were[slot] = was
        prompt_P, were_S = index([*members], device), index(were, device)
        where = were_S // before, were_S % before
        for layer, held in self.rows.items():
            self.prompts[layer] = tuple(x[prompt_P] for x in self.prompts[layer])  # type: ignore[assignment]
            self.rows[layer] = tuple(self._moved(x, *where) for x in held)  # type: ignore[assignment]
        self.length_P, self.slots = self.length_P[prompt_P], slots
        return were_S

    def _moved(self, x_PKGTD: Tensor, prompt_S: Tensor, member_S: Tensor) -> Tensor:
        """The slots (prompt, member), in a new cache for `group_size` members."""
        x_SKTD = x_PKGTD.transpose(1, 2)[prompt_S, member_S, :, : self.length]
        return self._roomy(x_SKTD.unflatten(0, (-1, self.group_size)).transpose(1, 2))

    def _roomy(self, x_PKGTD: Tensor) -> Tensor:
        """A copy with room for more tokens."""
        *shape, length, size = x_PKGTD.shape
        made = self.empty(x_PKGTD, (*shape, self.room, size))
        made[..., :length, :] = x_PKGTD
        return made


class Static(Cache):
    """A cache whose shapes stay, so that a step on it can be captured once and replayed: a call of the
    layers brings one token of every slot. All rows stay in their slots, those that have ended too. The
    place of the token that comes is a number on the device, and keys beyond it are masked. Only where the
    room is full is all of it made anew, for twice as many tokens, without rows that have ended."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        device = self.length_P.device
        self.at = torch.full((1,), -1, device=device)  # the place of the token that comes
        self.token_S = torch.zeros(len(self.slots), dtype=torch.long, device=device)
        self.living_N: Tensor | None = None  # the slots of living rows; None: all

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and room: while this stays, so do all tensors."""
        return len(self.token_S), self.room

    def empty(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """What is masked counts nothing only if it is a number."""
        return like.new_zeros(shape)

    def spread(self, token_N: Tensor) -> Tensor:
        """The tokens of all slots; those of rows that have ended are any."""
        if self.living_N is None:
            return self.token_S.copy_(token_N)
        return self.token_S.index_copy_(0, self.living_N, token_N)

    def living(self, x_NC: Tensor) -> Tensor:
        return x_NC if self.living_N is None else x_NC.index_select(0, self.living_N)

    def mix(self, module: Any, x_NC: Tensor) -> Tensor:
        held = self.states[module.layer_idx]
        states = States(held)
        found_N1C = read(module, x_NC[:, None], states)
        for old, new in zip(held, states.after, strict=True):
            old.copy_(new)
        return found_N1C[:, 0]

    @property
    def positions_N(self) -> Tensor:
        return self.start_N + self.at

    def advance(self) -> None:
        if self.length == self.room:
            self._renew()
        self.length += 1
        self.at.add_(1)
        self._masks = {}

    def keep(self, live: Sequence[int]) -> None:
        self.slots = [self.slots[number] for number in live]
        self._find()

    def _find(self) -> None:
        whole = len(self.slots) == len(self.token_S)
        self.living_N = None if whole else index(self.slots, self.token_S.device)

    def _renew(self) -> None:
        """All that is held, with more room, and without rows that have ended."""
        self.room = room_for(self.length + 1, self.max_tokens)
        were_S = self._compact()
        self.states = {layer: (x[were_S], y[were_S]) for layer, (x, y) in self.states.items()}
        self.start_N = self.length_P.repeat_interleave(self.group_size)
        self.token_S = torch.zeros_like(were_S)
        self._find()

    def _written(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        held = self.rows[layer]
        for x_PKGTD, x_SKD in zip(held, new, strict=True):
            x_PGKD = x_SKD.unflatten(0, (-1, self.group_size))
            x_PKGTD.index_copy_(3, self.at, x_PGKD.transpose(1, 2).unsqueeze(3))
        return held

    def _hidden(self, longest: int, window: int | None) -> tuple[Tensor | None, Tensor | None]:
        if window not in self._masks:
            at_L, at_T = (torch.arange(n, device=self.at.device) for n in (longest, self.room))
            prompt, row = at_L >= self.length_P[:, None], at_T > self.at
            if window is not None:
                prompt = prompt | (self.length_P[:, None] + self.at - at_L >= window)
                row = row | (self.at - at_T >= window)
            needed = self.padded or window is not None
            self._masks[window] = (prompt[:, None, None, None] if needed else None), row
        return self._masks[window]
