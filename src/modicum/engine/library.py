"""The plain engine: the library's whole forward, for any architecture.

Prompts of unequal length are padded on the left for sampling and masked; for training, rows are
padded on the right, where causal attention never looks. It is what the split engine is tested
against. What an architecture cannot do, `engine.probe.probe` finds out before anything is sampled.

Shapes: P prompt, G member, B = P x G rows, T token, N completion tokens laid end to end,
H hidden, V vocabulary."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPast

from modicum.engine.base import Changed, Decoding, Engine, Prompts
from modicum.models.device import index, up
from modicum.models.linear import replaced
from modicum.models.load import inner
from modicum.report.words import say
from modicum.types import Frozen, Row

CACHES = ("cache", "state")  # what forwards call it, in their arguments and in what they give


class Abilities(Frozen):
    """What an architecture's own forward can be used for."""

    cache: Literal["padded", "equal", "none"] = "padded"
    """Which prompts its cache decodes together, repeated for a group: any, padded on the left;
    those of one length; none, as there is no such cache."""
    whole: bool = False
    """Whether logits can only be had by the whole forward, not from the decoder's states."""


FOUND: WeakKeyDictionary[Any, Abilities] = WeakKeyDictionary()
"""By model, what `engine.probe.probe` found; a model that was not probed can do all."""


class Given(BaseModelOutputWithPast):
    """Stands for what a decoder gives: its states, and nothing else."""

    def __getattr__(self, name: str) -> None:
        """No losses of routers."""
        return None


class LibraryEngine(Engine):
    """Runs a model by its own forward."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.can = FOUND.get(inner(model), Abilities())
        self.of_one_length = self.can.cache == "equal"
        if self.can.cache != "padded":
            kind = repr(inner(model).config.model_type)
            self.notes = (say("poor_cache", kind=kind, equal=self.of_one_length),)
        super().__init__(inner(model).get_output_embeddings().weight, device)
        if self.can.whole:  # its states are logits
            self.width = self.vocabulary

    def follow(self, changed: Changed) -> None:
        """The whole model is run every time, wherever it trains."""

    def decode(self, prompts: Prompts, group_size: int, max_tokens: int, keep: bool) -> Decoding:
        kind = UncachedDecoding if self.can.cache == "none" else LibraryDecoding
        return kind(self, prompts, group_size, max_tokens)

    def pack(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """ids_BT, padded on the right, and the flat index_N of the states that predict."""
        sequences = [torch.tensor(row.prompt + row.tokens) for row in rows]
        ids_BT = pad_sequence(sequences, batch_first=True)
        firsts = [b * ids_BT.shape[1] + len(row.prompt) - 1 for b, row in enumerate(rows)]
        index = [torch.arange(len(row.tokens)) + at for at, row in zip(firsts, rows, strict=True)]
        ids_BT, index_N = up(self.device, ids_BT, torch.cat(index))
        return ids_BT, index_N

    def hidden(self, pack: tuple[Tensor, Tensor], trunk: Tensor | None) -> Tensor:
        ids_BT, index_N = pack
        if self.can.whole:
            return self.model(input_ids=ids_BT, use_cache=False).logits.flatten(0, 1)[index_N]
        decoder = decoder_of(inner(self.model))
        hidden_BTH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden_BTH.flatten(0, 1)[index_N]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of such states; where only the whole forward gives them, they are these."""
        if self.can.whole:
            return hidden_NH
        # By the model's own forward around its decoder, which may scale or cap.
        base = inner(self.model)
        ids_1N = torch.zeros(1, len(hidden_NH), dtype=torch.long, device=self.device)
        states = Given(hidden_NH[None])  # type: ignore[arg-type]
        with replaced(lambda *_, **__: states, [decoder_of(base)]):  # type: ignore[arg-type, return-value]
            return base(input_ids=ids_1N, use_cache=False).logits[0]


def decoder_of(base: Any) -> Any:
    """The part of a model that makes its states: what it calls its decoder may be a matrix."""
    found = (base.get_decoder(), *(getattr(base, name, base) for name in ("base_model", "model")))
    return next((x for x in found if x is not base and not isinstance(x, nn.Linear)), base)


class LibraryDecoding(Decoding):
    """One token of every row at a time, with the library's cache."""

    def __init__(
        self, engine: LibraryEngine, prompts: Prompts, group_size: int, max_tokens: int
    ) -> None:
        self.model, device = engine.model, engine.device
        sequences = [torch.tensor(prompt, device=device) for prompt in prompts]
        both = sequences, [torch.ones_like(ids) for ids in sequences]
        ids_PT, mask_PT = (pad_sequence(of, batch_first=True, padding_side="left") for of in both)
        padded = not bool(mask_PT.all())
        self.known = inspect.signature(inner(self.model).forward).parameters
        mask = mask_PT if padded else None
        out = self._forward(ids_PT, mask, position_ids(mask_PT), logits_to_keep=1)
        self.cache_name = next(name for name in CACHES if getattr(out, name, None) is not None)
        self.cache = getattr(out, self.cache_name)
        member_B = torch.arange(len(prompts), device=device).repeat_interleave(group_size)
        self._choose(member_B)
        self.mask_BT = mask_PT[member_B] if padded else None
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.position_B = lengths[member_B]
        self.logits_BV = out.logits[:, -1][member_B]

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, **more: Any) -> Any:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **more}
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
        held = {self.cache_name: self.cache}
        out = self._forward(token_B[:, None], self.mask_BT, self.position_B[:, None], **held)
        self.cache = getattr(out, self.cache_name)
        self.logits_BV = out.logits[:, -1]
        self.position_B = self.position_B + 1

    def keep(self, live: Sequence[int]) -> None:
        live_B = index(live, self.position_B.device)
        self._choose(live_B)
        self.position_B = self.position_B[live_B]
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[live_B]


class UncachedDecoding(Decoding):
    """One token of every row at a time, by a whole forward of rows padded on the right."""

    def __init__(
        self, engine: LibraryEngine, prompts: Prompts, group_size: int, max_tokens: int
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

    def keep(self, live: Sequence[int]) -> None:
        live_B = index(live, self.engine.device)
        self.ids_BT, self.length_B = self.ids_BT[live_B], self.length_B[live_B]

    def skip_to(self, length: int) -> None:
        self.length_B, self.longest = self.length_B + length, self.longest + length

    def held(self) -> Mapping[str, Sequence[Tensor]]:
        """There is no cache, and none that grows."""
        return {"cache": ()}


def position_ids(mask_BT: Tensor) -> Tensor:
    """Positions [B, T] that count real tokens from 0; padding on the left stays at 0."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)
