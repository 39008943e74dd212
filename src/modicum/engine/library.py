"""The plain engine: the library's whole forward, for any architecture.

Prompts of unequal length are padded on the left for sampling and masked; for training,
rows are padded on the right, where causal attention never looks. It is what the split
engine is tested against, and what models outside `decoder.FAMILIES` run on.

Not every architecture's cache can be repeated and thinned out, or knows padding (linear
attention, state space models, some old ones). `engine.probe` finds out before anything is
sampled; such a model decodes without a cache, a whole forward for every token.

Shapes: P prompt, G member, B = P x G rows, T token, N completion tokens laid end to end,
H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from modicum.engine.base import Changed, Decoding, Engine, Prompt, Trunk
from modicum.models.decoder import cap
from modicum.models.load import inner
from modicum.types import Row


@dataclass(frozen=True)
class Abilities:
    """What an architecture's own forward can be used for."""

    cached: bool = True
    """Its cache decodes padded prompts, repeated for a group."""
    plain: bool = True
    """Its logits are the output embedding of the decoder's states, capped if the config says so."""


FOUND: WeakKeyDictionary[Any, Abilities] = WeakKeyDictionary()
"""By model, what `engine.probe` found; a model that was not probed can do all."""


class LibraryEngine(Engine):
    """Runs a model by its own forward."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.can = FOUND.get(inner(model), Abilities())
        if not self.can.cached:
            name = inner(model).config.model_type
            self.notes = (
                f"the cache of the architecture {name!r} cannot be used for groups of completions:"
                " every token is sampled by a whole forward, which is slow",
            )
        super().__init__(inner(model).get_output_embeddings().weight, device)

    def follow(self, changed: Changed) -> None:
        """The whole model is run every time, wherever it trains."""

    def decode(
        self, prompts: Sequence[Prompt], group_size: int, max_tokens: int, keep: bool
    ) -> Decoding:
        """Begin completions; nothing is kept."""
        if self.can.cached:
            return LibraryDecoding(self.model, self.device, prompts, group_size)
        return UncachedDecoding(self, prompts, group_size, max_tokens)

    def pack(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """(ids_BT padded on the right, flat index_N of the states that predict).

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
        return ids_BT.to(self.device), torch.cat(index).to(self.device)

    def trunk(self, pack: tuple[Tensor, Tensor]) -> None:
        """The whole model is run every time."""
        return None

    def hidden(self, pack: tuple[Tensor, Tensor], trunk: Tensor | None) -> Tensor:
        """States [N, H] after the final norm that predict the rows' completion tokens."""
        ids_BT, index_N = pack
        if not self.can.plain:
            return self.model(input_ids=ids_BT, use_cache=False).logits.flatten(0, 1)[index_N]
        decoder = inner(self.model).get_decoder()
        hidden_BTH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden_BTH.flatten(0, 1)[index_N]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of such states, capped where the model caps them.

        A head that does more than that has been run already: its logits are the states.
        """
        if not self.can.plain:
            return hidden_NH
        base = inner(self.model)
        softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        return cap(base.get_output_embeddings()(hidden_NH), softcap)


class LibraryDecoding(Decoding):
    """One token of every row at a time, with the library's cache."""

    def __init__(
        self, model: Any, device: torch.device, prompts: Sequence[Prompt], group_size: int
    ) -> None:
        self.model = model
        longest = max(map(len, prompts))
        ids_PT = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        mask_PT = torch.zeros_like(ids_PT)
        for row, prompt in enumerate(prompts):
            ids_PT[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            mask_PT[row, longest - len(prompt) :] = 1
        padded = not bool(mask_PT.all())
        out = model(
            input_ids=ids_PT,
            attention_mask=mask_PT if padded else None,
            position_ids=position_ids(mask_PT),
            use_cache=True,
            logits_to_keep=1,
        )
        self.count = len(prompts) * group_size
        self.cache = out.cache
        self.cache.batch_repeat_interleave(group_size)
        self.mask_BT = mask_PT.repeat_interleave(group_size, 0) if padded else None
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.position_B = lengths.repeat_interleave(group_size)
        self.logits_BV = out.logits[:, -1].repeat_interleave(group_size, 0)

    def advance(self, token_B: Tensor) -> None:
        """Feed a token of every living row."""
        if self.mask_BT is not None:
            more = self.mask_BT.new_ones(len(self.mask_BT), 1)
            self.mask_BT = torch.cat([self.mask_BT, more], 1)
        self.logits_BV = self.model(
            input_ids=token_B[:, None],
            attention_mask=self.mask_BT,
            position_ids=self.position_B[:, None],
            cache=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.position_B = self.position_B + 1

    def keep(self, live_B: Tensor) -> None:
        """Only these rows go on."""
        self.cache.batch_select_indices(live_B)
        self.position_B = self.position_B[live_B]
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[live_B]

    def trunks(self, lengths: Sequence[int]) -> list[Trunk | None]:
        """Nothing was kept."""
        return [None] * self.count

    def skip_to(self, length: int) -> None:
        """The library's cache grows as it goes."""


class UncachedDecoding(Decoding):
    """One token of every row at a time, by a whole forward of rows padded on the right."""

    def __init__(
        self, engine: LibraryEngine, prompts: Sequence[Prompt], group_size: int, max_tokens: int
    ) -> None:
        self.engine, self.count = engine, len(prompts) * group_size
        width, device = max(map(len, prompts)) + max_tokens, engine.device
        ids_PT = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            ids_PT[row, : len(prompt)] = torch.tensor(prompt, device=device)
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
        """Feed a token of every living row."""
        self.ids_BT = self.ids_BT.scatter(1, self.length_B[:, None], token_B[:, None])
        self.length_B, self.longest = self.length_B + 1, self.longest + 1
        self._run()

    def keep(self, live_B: Tensor) -> None:
        """Only these rows go on."""
        self.ids_BT, self.length_B = self.ids_BT[live_B], self.length_B[live_B]

    def trunks(self, lengths: Sequence[int]) -> list[Trunk | None]:
        """Nothing was kept."""
        return [None] * self.count

    def skip_to(self, length: int) -> None:
        """Go on as if completions had `length` tokens already."""
        self.length_B, self.longest = self.length_B + length, self.longest + length

    def held(self) -> Mapping[str, Sequence[Tensor]]:
        """There is no cache, and none that grows."""
        return {"cache": ()}


def position_ids(mask_BT: Tensor) -> Tensor:
    """Positions [B, T] that count real tokens from 0; padding on the left stays at 0."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)
