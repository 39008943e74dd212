"""The two roles: a `Sampler` draws completions, a `Scorer` gives their log-probs a gradient.

They share nothing but the policy's weights. An `Engine` is a scorer that can also decode token by
token, for the sampler `local`; a sampler that owns its loop (a server) needs no engine.

Shapes: P prompt, G member, B = P x G rows, N completion tokens laid end to end, H hidden,
V vocabulary."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modicum.config import Sampling
from modicum.engine.version import version_of
from modicum.models.device import up
from modicum.models.weight_copy import WeightCopy
from modicum.types import Completion, Frozen, Row

Prompt = tuple[int, ...]
Prompts = Sequence[Prompt]
Keys = Sequence[tuple[object, ...]]
Groups = list[tuple[Completion, ...]]


class Asked(Frozen):
    """`group_size` completions for every prompt. `keys[p]` names prompt p's noise: the same keys and
    weights give the same completions. `progress` is told the number of finished prompts."""

    prompts: Prompts
    keys: Keys
    group_size: int
    sampling: Sampling
    keep_trunk: bool = False
    progress: Callable[[int], None] = lambda done: None


class Trunk(Frozen):
    """Hidden states that enter the lowest trained layer, kept from sampling.

    `prompt` [L, H] is shared by the members of a group. `completion` [T - 1, H] lacks the
    last token, whose state predicts nothing."""

    prompt: Tensor
    completion: Tensor


class Decoding(ABC):
    """Completions of some prompts on their way: one token of every living row at a time."""

    logits_BV: Tensor  # logits of the next token of every living row

    @abstractmethod
    def advance(self, token_B: Tensor) -> None:
        """Feed the chosen token of every living row."""

    @abstractmethod
    def keep(self, live: Sequence[int]) -> None:
        """Let only the living rows with these numbers, in rising order, go on."""

    def trunks(self, lengths: Sequence[int]) -> list[Trunk | None]:
        """What was kept of every row that was begun, by its completion's length."""
        return [None] * len(lengths)

    def skip_to(self, length: int) -> None:  # noqa: B027  # the library's caches grow as they go
        """Go on as if completions had `length` tokens already; for runs without data."""

    def held(self) -> Mapping[str, Sequence[Tensor]]:
        """The tensors that it fills: `trunk`, and `cache` unless the library's own grows."""
        return {}


class Changed(Frozen):
    """What is different in the policy since it was last used."""

    tensors: Mapping[str, Tensor]  # the tensors that train now, by name
    lowest: int  # the lowest layer that trains now; -1: the embedding, number of layers: only above
    adapters: Sequence[nn.Module] = ()
    """The layers of an adapter, which can be switched off or merged."""

    @property
    def version(self) -> str:
        """The version of the weights as they are now."""
        return version_of(self.tensors, self.adapters)


class Sampler(ABC):
    """Draws completions from the policy; how is its own affair."""

    in_process: ClassVar[bool] = False
    """Whether it runs the trainer's own model, in whatever precision that computes."""
    proven: str = ""  # what was last proved of weights that are elsewhere, in words

    @abstractmethod
    def sample(self, asked: Asked) -> Groups:
        """The completions, in the order of the prompts, with their log-probs.

        Each says its `origin`: the version of the weights that it was drawn from, taken of these
        weights themselves, and the settings of the distribution.
        A completion ends with an end token, or the token that completes a string of
        `sampling.stop` as `engine.text.Texts` tells it, which also cuts the text. Temperature 0
        takes the most probable token."""

    @abstractmethod
    def follow(self, changed: Changed) -> None:
        """Sample from the policy as it is now."""

    def metrics(self) -> dict[str, float]:
        """What it has measured since it was last asked."""
        return {}

    def prove(self) -> None:  # noqa: B027  # not all have a copy of the weights
        """RunStopped where the weights that it samples from are not the policy's."""

    def close(self) -> None:  # noqa: B027  # not all have begun anything
        """End what it has started."""


class Scorer(ABC):
    """Runs a policy, adapters included, for the log-probs of completions."""

    splits: ClassVar[bool] = False
    """Whether layers are run in stretches: prompts once a group, the frozen trunk once."""
    notes: Sequence[str] = ()  # what a user should know of how this model is run

    def __init__(self, head: Tensor, device: torch.device, recomputes: bool = False) -> None:
        self.device, self.on_cuda = device, device.type == "cuda"
        self.vocabulary = len(head)
        self.width = head.shape[1]  # of one hidden state
        self.state_bytes = self.width * head.element_size()
        self.recomputes = recomputes
        """Whether backward computes the activations of trained layers once more."""

    @abstractmethod
    def follow(self, changed: Changed) -> None:
        """Score with the policy as it is now."""

    @abstractmethod
    def pack(self, rows: Sequence[Row]) -> Any:
        """The rows as the tensors that `trunk` and `hidden` take."""

    def trunk(self, pack: Any) -> Tensor | None:
        """What does not train, run without a graph (or as kept); None: there is no such part."""
        return None

    @torch.no_grad()
    def states(self, pack: Any, depth: int | None = None) -> Tensor:
        """The states [N, H] that predict the rows' tokens: the last, or what enters a layer."""
        return self.hidden(pack, self.trunk(pack))

    @abstractmethod
    def hidden(self, pack: Any, trunk: Tensor | None) -> Tensor:
        """States [N, H] after the final norm that predict the rows' tokens, from `trunk` on."""

    @abstractmethod
    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of such states."""


class Engine(Scorer):
    """A scorer that can also decode, token by token, for the sampler `local`."""

    weight_copy: WeightCopy | None = None  # what it decodes with; whoever samples refreshes it
    of_one_length: bool = False  # whether only prompts of one length can be decoded together

    @abstractmethod
    def decode(self, prompts: Prompts, group_size: int, max_tokens: int, keep: bool) -> Decoding:
        """Begin `group_size` completions of each prompt; `keep` asks for their trunks."""


def tokens_of(rows: Sequence[Row], device: torch.device) -> Tensor:
    """All completion tokens [N], row after row."""
    return up(device, torch.tensor([token for row in rows for token in row.tokens]))[0]
