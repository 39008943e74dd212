"""Decoding by the library's own forward: with its cache, or with none.

Shapes: P prompt, G member, B = P x G rows, T token, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from modicum.engine.base import Decoding, Prompt
from modicum.models.load import inner

if TYPE_CHECKING:
    from modicum.engine.library import LibraryEngine

CACHES = ("cache", "state")  # what forwards call it, in their arguments and in what they give


class LibraryDecoding(Decoding):
    """One token of every row at a time, with the library's cache."""

    def __init__(
        self, engine: LibraryEngine, prompts: Sequence[Prompt], group_size: int, max_tokens: int
    ) -> None:
        self.model, device = engine.model, engine.device
        sequences = [torch.tensor(prompt, device=device) for prompt in prompts]
        ids_PT, mask_PT = (
            pad_sequence(of, batch_first=True, padding_side="left")
            for of in (sequences, [torch.ones_like(ids) for ids in sequences])
        )
        padded = not bool(mask_PT.all())
        self.known = inspect.signature(inner(self.model).forward).parameters
        out = self._forward(
            input_ids=ids_PT,
            attention_mask=mask_PT if padded else None,
            position_ids=position_ids(mask_PT),
            logits_to_keep=1,
        )
        self.cache_name = next(name for name in CACHES if getattr(out, name, None) is not None)
        self.cache = getattr(out, self.cache_name)
        member_B = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
        self._choose(member_B)
        self.mask_BT = mask_PT[member_B] if padded else None
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.position_B = lengths[member_B]
        self.logits_BV = out.logits[:, -1][member_B]

    def _forward(self, **given: Any) -> Any:
        """The model's forward with those arguments that it knows."""
        if not any(p.kind is p.VAR_KEYWORD for p in self.known.values()):
            given = {name: value for name, value in given.items() if name in self.known}
        return self.model(use_cache=True, **given)

    def _choose(self, row_B: Tensor) -> None:
        """These rows of the cache go on; a row may come more than once."""
        lists = [self.cache]
        if hasattr(self.cache, "reorder_cache"):
            self.cache.reorder_cache(row_B)
            lists = [held for held in vars(self.cache).values() if isinstance(held, list)]
        for held in lists:  # RWKV has nothing else, MiniMax the states of its linear layers
            held[:] = [x.index_select(0, row_B) if isinstance(x, Tensor) else x for x in held]

    def advance(self, token_B: Tensor) -> None:
        if self.mask_BT is not None:
            more = self.mask_BT.new_ones(len(self.mask_BT), 1)
            self.mask_BT = torch.cat([self.mask_BT, more], 1)
        out = self._forward(
            input_ids=token_B[:, None],
            attention_mask=self.mask_BT,
            position_ids=self.position_B[:, None],
            **{self.cache_name: self.cache},
        )
        self.cache = getattr(out, self.cache_name)
        self.logits_BV = out.logits[:, -1]
        self.position_B = self.position_B + 1

    def keep(self, live_B: Tensor) -> None:
        self._choose(live_B)
        self.position_B = self.position_B[live_B]
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[live_B]


class UncachedDecoding(Decoding):
    """One token of every row at a time, by a whole forward of rows padded on the right."""

    def __init__(
        self, engine: LibraryEngine, prompts: Sequence[Prompt], group_size: int, max_tokens: int
    ) -> None:
        self.engine = engine
        device = engine.device
        sequences = [torch.tensor(prompt, device=device) for prompt in prompts]
        ids_PT = pad(pad_sequence(sequences, batch_first=True), (0, max_tokens))
        self.ids_BT = ids_PT.repeat_interleave(group_size, 0)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.length_B = lengths.repeat_interleave(group_size)
        self.longest = max(map(len, prompts))
        self._run()

    def _run(self) -> None:
        width = self.longest
        first_B = torch.arange(len(self.ids_BT), device=self.ids_BT.device) * width
        pack = self.ids_BT[:, :width], first_B + self.length_B - 1
        self.logits_BV = self.engine.logits(self.engine.hidden(pack, None))

    def advance(self, token_B: Tensor) -> None:
        self.ids_BT = self.ids_BT.scatter(1, self.length_B[:, None], token_B[:, None])
        self.length_B, self.longest = self.length_B + 1, self.longest + 1
        self._run()

    def keep(self, live_B: Tensor) -> None:
        self.ids_BT, self.length_B = self.ids_BT[live_B], self.length_B[live_B]

    def skip_to(self, length: int) -> None:
        self.length_B, self.longest = self.length_B + length, self.longest + length

    def held(self) -> Mapping[str, Sequence[Tensor]]:
        """There is no cache, and none that grows."""
        return {"cache": ()}


def position_ids(mask_BT: Tensor) -> Tensor:
    """Positions [B, T] that count real tokens from 0; padding on the left stays at 0."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)
