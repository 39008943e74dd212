"""What an engine does for sampling and training, whichever forward it uses.

`SplitEngine` runs the decoder's layers itself: prompts once for their group, the frozen
trunk once for sampling, reference and training. `LibraryEngine` runs the library's whole
forward, for every architecture, with none of that.

Shapes: P prompt, G member, B = P x G rows, N completion tokens laid end to end, H hidden,
V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modicum.types import Row

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Trunk:
    """Hidden states that enter the lowest trained layer, kept from sampling.

    `prompt` [L, H] is shared by the members of a group. `completion` [T - 1, H] lacks the
    last token, whose state predicts nothing.
    """

    prompt: Tensor
    completion: Tensor


class Decoding(ABC):
    """Completions of some prompts on their way: one token of every living row at a time."""

    logits_BV: Tensor
    """Logits of the next token of every living row."""

    @abstractmethod
    def advance(self, token_B: Tensor) -> None:
        """Feed the chosen token of every living row."""

    @abstractmethod
    def keep(self, live_B: Tensor) -> None:
        """Let only the living rows with these numbers, in rising order, go on."""

    @abstractmethod
    def trunks(self, lengths: Sequence[int]) -> list[Trunk | None]:
        """What was kept of every row that was begun, by its completion's length."""


class Engine(ABC):
    """Runs a policy, adapters included, for sampling and for training."""

    def __init__(self, head: Tensor, device: torch.device) -> None:
        self.device = device
        self.vocabulary = len(head)
        self.state_bytes = head.shape[1] * head.element_size()  # of one hidden state

    @abstractmethod
    def follow(self, lowest: int) -> None:
        """Hear that the lowest trained layer is now `lowest` (-1: the embedding)."""

    @abstractmethod
    def decode(
        self, prompts: Sequence[Prompt], group_size: int, max_tokens: int, keep: bool
    ) -> Decoding:
        """Begin `group_size` completions of each prompt; `keep` asks for their trunks."""

    @abstractmethod
    def pack(self, rows: Sequence[Row]) -> Any:
        """The rows as the tensors that `trunk` and `hidden` take."""

    @abstractmethod
    def trunk(self, pack: Any) -> Tensor | None:
        """What does not train, run without a graph (or as kept); None: there is no such part."""

    @abstractmethod
    def hidden(self, pack: Any, trunk: Tensor | None) -> Tensor:
        """States [N, H] after the final norm that predict the rows' completion tokens.

        Without `trunk` the whole model is run.
        """

    @abstractmethod
    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of such states."""


def tokens_of(rows: Sequence[Row], device: torch.device) -> Tensor:
    """All completion tokens [N], row after row."""
    return torch.tensor([token for row in rows for token in row.tokens], device=device)
