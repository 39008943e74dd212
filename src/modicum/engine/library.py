"""The plain engine: the library's whole forward, for any architecture.

Prompts of unequal length are padded on the left for sampling and masked; for training,
rows are padded on the right, where causal attention never looks. It is what the split
engine is tested against, and what models outside `decoder.FAMILIES` run on.

Not every architecture's cache knows padding (some linear attention and state space models), and
some have none that can be repeated. `engine.probe` finds out before anything is sampled; such a
model decodes prompts of one length at a time, or by a whole forward for every token.

Shapes: P prompt, G member, B = P x G rows, T token, N completion tokens laid end to end,
H hidden, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from modicum.engine.base import Changed, Decoding, Engine, Prompt, Trunk
from modicum.models.decoder import cap
from modicum.models.linear import replaced
from modicum.models.load import inner
from modicum.types import Row


@dataclass(frozen=True)
class Abilities:
    """What an architecture's own forward can be used for."""

    cache: Literal["padded", "equal", "none"] = "padded"
    """Which prompts its cache decodes together, repeated for a group: any, padded on the left;
    those of one length; none, as there is no such cache."""
    head: Literal["plain", "own", "whole"] = "plain"
    """What makes logits of the decoder's states: the output embedding, capped if the config says
    so; the model's own forward around its decoder (which scales, say); nothing but the whole."""


FOUND: WeakKeyDictionary[Any, Abilities] = WeakKeyDictionary()
"""By model, what `engine.probe` found; a model that was not probed can do all."""
NOTES = {
    "padded": "",
    "equal": "the cache of the architecture {!r} knows no padding: prompts of one length are sampled"
    " together, and the others after them",
    "none": "the architecture {!r} has no cache that can be used for groups of completions: every"
    " token is sampled by a whole forward, which is slow",
}
CACHES = ("cache", "state")  # what forwards call it, in their arguments and in what they give


class Given(tuple[Tensor]):
    """Stands for what a decoder gives: its states, and nothing else."""

    @property
    def last_hidden_state(self) -> Tensor:
        """The states."""
        return self[0]

    def __getattr__(self, name: str) -> None:
        """No cache, no losses of routers."""
        return None


class LibraryEngine(Engine):
    """Runs a model by its own forward."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.can = FOUND.get(inner(model), Abilities())
        if note := NOTES[self.can.cache]:
            self.notes = (note.format(inner(model).config.model_type),)
        super().__init__(inner(model).get_output_embeddings().weight, device)

    def follow(self, changed: Changed) -> None:
        """The whole model is run every time, wherever it trains."""

    def decode(
        self, prompts: Sequence[Prompt], group_size: int, max_tokens: int, keep: bool
    ) -> Decoding:
        """Begin completions; nothing is kept."""
        return DECODINGS[self.can.cache](self, prompts, group_size, max_tokens)

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
        if self.can.head == "whole":
            return self.model(input_ids=ids_BT, use_cache=False).logits.flatten(0, 1)[index_N]
        decoder = decoder_of(inner(self.model))
        hidden_BTH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden_BTH.flatten(0, 1)[index_N]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of such states; where only the whole forward gives them, they are these."""
        if self.can.head == "whole":
            return hidden_NH
        base = inner(self.model)
        if self.can.head == "own":
            ids_1N = torch.zeros(1, len(hidden_NH), dtype=torch.long, device=self.device)
            states = Given((hidden_NH[None],))
            with replaced(lambda *_, **__: states, [decoder_of(base)]):  # type: ignore[arg-type, return-value]
                return base(input_ids=ids_1N, use_cache=False).logits[0]
        softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        return cap(base.get_output_embeddings()(hidden_NH), softcap)


class LibraryDecoding(Decoding):
    """One token of every row at a time, with the library's cache."""

    def __init__(
        self, engine: LibraryEngine, prompts: Sequence[Prompt], group_size: int, max_tokens: int
    ) -> None:
        self.model, device = engine.model, engine.device
        longest = max(map(len, prompts))
        ids_PT = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        mask_PT = torch.zeros_like(ids_PT)
        for row, prompt in enumerate(prompts):
            ids_PT[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            mask_PT[row, longest - len(prompt) :] = 1
        padded = not bool(mask_PT.all())
        self.known = inspect.signature(inner(self.model).forward).parameters
        out = self._forward(
            input_ids=ids_PT,
            attention_mask=mask_PT if padded else None,
            position_ids=position_ids(mask_PT),
            logits_to_keep=1,
        )
        self.count = len(prompts) * group_size
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
        if hasattr(self.cache, "reorder_cache"):
            self.cache.reorder_cache(row_B)
        else:
            self.cache = [tensor.index_select(0, row_B) for tensor in self.cache]

    def advance(self, token_B: Tensor) -> None:
        """Feed a token of every living row."""
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
        """Only these rows go on."""
        self._choose(live_B)
        self.position_B = self.position_B[live_B]
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[live_B]

    def trunks(self, lengths: Sequence[int]) -> list[Trunk | None]:
        """Nothing was kept."""
        return [None] * self.count

    def skip_to(self, length: int) -> None:
        """The library's cache grows as it goes."""


class LengthDecoding(Decoding):
    """Prompts of one length at a time, for a cache that knows no padding."""

    def __init__(
        self, engine: LibraryEngine, prompts: Sequence[Prompt], group_size: int, max_tokens: int
    ) -> None:
        self.count = len(prompts) * group_size
        number_PG = torch.arange(self.count, device=engine.device).view(-1, group_size)
        lengths = [len(prompt) for prompt in prompts]
        self.parts: list[tuple[Tensor, LibraryDecoding]] = []
        for length in sorted(set(lengths)):
            of = [place for place, found in enumerate(lengths) if found == length]
            part = LibraryDecoding(engine, [prompts[p] for p in of], group_size, max_tokens)
            self.parts.append((number_PG[of].flatten(), part))
        self._gather(self.count)

    def _gather(self, rows: int) -> None:
        first_BV = self.parts[0][1].logits_BV
        self.logits_BV = first_BV.new_empty(rows, first_BV.shape[1])
        for number_B, part in self.parts:
            self.logits_BV[number_B] = part.logits_BV

    def advance(self, token_B: Tensor) -> None:
        """Feed a token of every living row."""
        for number_B, part in self.parts:
            part.advance(token_B[number_B])
        self._gather(len(token_B))

    def keep(self, live_B: Tensor) -> None:
        """Only these rows go on."""
        parts, self.parts = self.parts, []
        for number_B, part in parts:
            stays_B = torch.isin(number_B, live_B)
            if bool(stays_B.any()):
                part.keep(stays_B.nonzero().squeeze(-1))
                self.parts.append((torch.searchsorted(live_B, number_B[stays_B]), part))

    def trunks(self, lengths: Sequence[int]) -> list[Trunk | None]:
        """Nothing was kept."""
        return [None] * self.count

    def skip_to(self, length: int) -> None:
        """The library's caches grow as they go."""


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


DECODINGS: Mapping[str, type[LibraryDecoding | LengthDecoding | UncachedDecoding]] = {
    "padded": LibraryDecoding,
    "equal": LengthDecoding,
    "none": UncachedDecoding,
}


def decoder_of(base: Any) -> Any:
    """The part of a model that makes its states: what it calls its decoder may be a matrix."""
    found = base.get_decoder()
    return found if hasattr(found, "config") else base.base_model


def position_ids(mask_BT: Tensor) -> Tensor:
    """Positions [B, T] that count real tokens from 0; padding on the left stays at 0."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)
