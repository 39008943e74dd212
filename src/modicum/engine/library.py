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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPast

from modicum.engine.base import Changed, Decoding, Engine, Prompt
from modicum.engine.decoding import LibraryDecoding, UncachedDecoding
from modicum.models.linear import replaced
from modicum.models.load import inner
from modicum.types import Row


@dataclass(frozen=True)
class Abilities:
    """What an architecture's own forward can be used for."""

    cache: Literal["padded", "equal", "none"] = "padded"
    """Which prompts its cache decodes together, repeated for a group: any, padded on the left;
    those of one length; none, as there is no such cache."""
    whole: bool = False
    """Whether logits can only be had by the whole forward, not from the decoder's states."""


FOUND: WeakKeyDictionary[Any, Abilities] = WeakKeyDictionary()
"""By model, what `engine.probe` found; a model that was not probed can do all."""
NOTES = {
    "padded": "",
    "equal": "the cache of the architecture {!r} knows no padding: prompts of one length are sampled"
    " together, and the others after them",
    "none": "the architecture {!r} has no cache that can be used for groups of completions: every"
    " token is sampled by a whole forward, which is slow",
}


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
        if note := NOTES[self.can.cache]:
            self.notes = (note.format(inner(model).config.model_type),)
        self.of_one_length = self.can.cache == "equal"
        super().__init__(inner(model).get_output_embeddings().weight, device)

    def follow(self, changed: Changed) -> None:
        """The whole model is run every time, wherever it trains."""

    def decode(
        self, prompts: Sequence[Prompt], group_size: int, max_tokens: int, keep: bool
    ) -> Decoding:
        """Begin completions; nothing is kept."""
        kind = UncachedDecoding if self.can.cache == "none" else LibraryDecoding
        return kind(self, prompts, group_size, max_tokens)

    def pack(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """(ids_BT padded on the right, flat index_N of the states that predict).

        The state at position prompt + t - 1 predicts completion token t.
        """
        sequences = [torch.tensor(row.prompt + row.tokens) for row in rows]
        ids_BT = pad_sequence(sequences, batch_first=True)
        firsts = [b * ids_BT.shape[1] + len(row.prompt) - 1 for b, row in enumerate(rows)]
        index = [torch.arange(len(row.tokens)) + at for at, row in zip(firsts, rows, strict=True)]
        return ids_BT.to(self.device), torch.cat(index).to(self.device)

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
