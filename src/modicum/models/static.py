"""A key/value cache whose shapes stay: a step on it can be captured once and replayed.

All rows stay in their slots, those that have ended too. The place of the token that comes is a number
on the device, and keys beyond it are masked. Only where the room is full is all of it made anew, for
twice as many tokens, and then rows that have ended are left out.

Shapes: N row that is run (all slots) or that lives, P prompt, G member, S = P x G slot, L token of a prompt, T place of a row,
K key/value head, D size of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modicum.models.attention import States, read
from modicum.models.cache import Cache, room_for
from modicum.models.device import index


class Static(Cache):
    """A call of the layers brings one token of every slot."""

    def __init__(
        self, lengths: Sequence[int], group_size: int, max_tokens: int, device: torch.device
    ) -> None:
        super().__init__(lengths, group_size, max_tokens, device)
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

    def position_N(self) -> Tensor:
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
