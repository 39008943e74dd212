"""The fast engine: layers run in stretches, prompts once a group, the frozen trunk once.

Below the lowest trained layer nothing changes, so the states that enter it are the same
in sampling, reference and training: sampling keeps them (as long as they fit a budget),
or one forward without a graph makes them.

On a GPU a step of decoding is a thousand kernels and more, each short: without a graph the time of a
token is that of launching them. Where the shapes stay (`models.cache.Static`) they are captured once
as a CUDA graph, which is then replayed for every token until the room of the rows grows.

Shapes: P prompt, G member, S = P x G rows begun, B living row, N tokens laid end to end,
T completion token, H hidden, V vocabulary."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from modicum.engine.base import Changed, Decoding, Engine, Prompts, Trunk
from modicum.models.attention import Packed
from modicum.models.cache import Cache, Static
from modicum.models.decoder import Decoder
from modicum.models.device import index
from modicum.models.linear import few_rows
from modicum.types import Frozen, Row

Step = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Takes the tokens of rows; the states that enter the lowest trained layer, and logits."""
WARM = 2  # steps that are run as they are before one is captured


class Graph:
    """Captures a step of each shape, after two that are run as they are, and replays it. What it
    gives is overwritten by the next step. While `shape` stays, so must all tensors that it reads and
    writes."""

    def __init__(self) -> None:
        self.stream: Any = torch.cuda.Stream()
        self.warm = 0
        self.shape: Any = None
        self.graph: Any = None
        self.found: Any = None  # what it gives

    def __call__(self, step: Step, token_N: Tensor, shape: Any) -> tuple[Tensor, Tensor]:
        if shape != self.shape:
            self.shape, self.warm, self.graph, self.found = shape, 0, None, None
        if self.warm < WARM:
            self.warm += 1
            # On the stream of the capture, whose libraries set themselves up for it.
            main = torch.cuda.current_stream()
            self.stream.wait_stream(main)
            with torch.cuda.stream(self.stream):
                found = step(token_N)
            main.wait_stream(self.stream)
            return found
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the GPU meanwhile. Nothing is computed here.
            how: Any = {"stream": self.stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(self.graph, **how):
                self.found = step(token_N)
        self.graph.replay()
        return self.found


class Way(NamedTuple):
    """One way of decoding."""

    plan: type[Cache]
    graph: type[Graph] | None = None  # what replays a step; None: steps are run as they are


GROWING, FIXED, REPLAYED = Way(Cache), Way(Static), Way(Static, Graph)


def way_for(decoder: Decoder, device: torch.device, graphs: bool | None = None) -> Way:
    """The way of a device: graphs on a GPU, where the model allows it; or as is asked."""
    if not (device.type == "cuda" if graphs is None else graphs) or not decoder.fixed:
        return GROWING
    return REPLAYED if device.type == "cuda" else FIXED


class Pack(Frozen):
    """Rows laid end to end after their prompts, each prompt once."""

    ids_N: Tensor
    plan: Packed
    predicts: Tensor  # where the states are that predict the completion tokens, row after row
    kept: list[Tensor] | None
    """The trunk's states of prompts and rows in order, if sampling kept all of them."""


class SplitEngine(Engine):
    """Runs a decoder of a known family.

    `lowest` is the lowest layer that trains; -1 means that the embedding does, and
    `num_layers` that only what lies above the layers does."""

    splits: ClassVar[bool] = True
    way: Way = GROWING  # how it decodes

    def __init__(self, decoder: Decoder, lowest: int, recomputes: bool = False) -> None:
        self.decoder = decoder
        self.lowest = lowest
        super().__init__(decoder.head.weight, decoder.head.weight.device, recomputes)

    def follow(self, changed: Changed) -> None:
        """What lies below the lowest trained layer is the trunk from now on."""
        self.lowest = changed.lowest

    def decode(self, prompts: Prompts, group_size: int, max_tokens: int, keep: bool) -> Decoding:
        """Begin completions; trunks are kept where there is a layer below the trained ones."""
        return SplitDecoding(self, prompts, group_size, max_tokens, keep and self.lowest > 0)

    def pack(self, rows: Sequence[Row]) -> Pack:
        """The rows with every group's prompt once; the last token predicts nothing."""
        keys = [(row.group, row.prompt) for row in rows]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        groups = [places[key] for key in keys]
        firsts = [rows[groups.index(place)] for place in range(len(places))]
        prompt_lengths = [len(row.prompt) for row in firsts]
        row_lengths = [len(row.tokens) - 1 for row in rows]
        ids = [token for row in firsts for token in row.prompt]
        predicts, at = [], len(ids)
        ends = list(accumulate(prompt_lengths))
        for row, group, length in zip(rows, groups, row_lengths, strict=True):
            ids.extend(row.tokens[:-1])
            predicts.append(ends[group] - 1)
            predicts.extend(range(at, at + length))
            at += length
        more = [torch.tensor(of) for of in (ids, predicts)]
        plan = Packed(prompt_lengths, groups, row_lengths, self.device, more=more)
        kept = None
        if all(row.trunk is not None for row in rows):
            kept = [row.trunk.prompt for row in firsts] + [row.trunk.completion for row in rows]
        ids_N, at_N = plan.more
        return Pack(ids_N, plan, at_N, kept)

    def trunk(self, pack: Pack) -> Tensor | None:
        """The states [N, H] that enter the lowest trained layer; None if the embedding trains."""
        return None if self.lowest < 0 else self._entering(pack, self.lowest)

    @torch.no_grad()
    def _entering(self, pack: Pack, layer: int) -> Tensor:
        if pack.kept is not None and layer == self.lowest:
            return torch.cat(pack.kept)
        hidden_NH = self.decoder.embed(pack.ids_N)
        return self.decoder.run(hidden_NH, pack.plan, 0, layer)

    def states(self, pack: Pack, depth: int | None = None) -> Tensor:
        if depth is None:
            return super().states(pack)
        return self._entering(pack, depth).index_select(0, pack.predicts)

    def hidden(self, pack: Pack, trunk: Tensor | None) -> Tensor:
        first = 0 if trunk is None else self.lowest
        states_NH = self.decoder.embed(pack.ids_N) if trunk is None else trunk
        states_NH = self.decoder.run(states_NH, pack.plan, first, recompute=self.recomputes)
        return self.decoder.finish(states_NH.index_select(0, pack.predicts))

    def logits(self, hidden_NH: Tensor) -> Tensor:
        return self.decoder.logits(hidden_NH)


class SplitDecoding(Decoding):
    """One token of every row at a time, with our own cache."""

    def __init__(
        self, engine: SplitEngine, prompts: Prompts, group_size: int, max_tokens: int, keep: bool
    ) -> None:
        self.engine, decoder, device = engine, engine.decoder, engine.device
        lengths = [len(prompt) for prompt in prompts]
        self.group_size = group_size
        self.cache = engine.way.plan(lengths, group_size, max_tokens, device)
        self.graph = engine.way.graph() if engine.way.graph else None
        plan = Packed(lengths, [], [], device, self.cache)
        ids_N = torch.tensor([t for prompt in prompts for t in prompt], device=device)
        self.stop = engine.lowest if keep else 0
        hidden_NH = decoder.run(decoder.embed(ids_N), plan, 0, self.stop)
        self.prompts: list[Tensor] = []
        self.states_STH: Tensor | None = None
        if keep:
            self.prompts = list(hidden_NH.split(lengths))
            rows = len(prompts) * group_size
            self.states_STH = hidden_NH.new_empty(rows, max_tokens, hidden_NH.shape[-1])
        self.row_B = torch.arange(len(prompts) * group_size, device=device)
        hidden_NH = decoder.run(hidden_NH, plan, self.stop)
        last_P = torch.tensor(lengths, device=device).cumsum(0) - 1
        logits_PV = decoder.logits(decoder.finish(hidden_NH[last_P]))
        self.logits_BV = logits_PV.repeat_interleave(group_size, 0)

    def advance(self, token_B: Tensor) -> None:
        cache = self.cache
        cache.advance()
        if self.graph is None:
            entering_NH, logits_NV = self._step(cache.spread(token_B))
        else:
            entering_NH, logits_NV = self.graph(self._step, cache.spread(token_B), cache.shape)
        if self.states_STH is not None:
            self.states_STH[self.row_B, cache.length - 1] = cache.living(entering_NH)
        self.logits_BV = cache.living(logits_NV)

    def _step(self, token_N: Tensor) -> tuple[Tensor, Tensor]:
        """The states that enter the lowest trained layer, if they are kept, and logits."""
        decoder, cache, copy = self.engine.decoder, self.cache, self.engine.weight_copy
        with copy.used() if copy else few_rows(decoder.linears, len(token_N)):
            entering_NH = decoder.run(decoder.embed(token_N), cache, 0, self.stop)
            hidden_NH = decoder.run(entering_NH, cache, self.stop)
            return entering_NH, decoder.logits(decoder.finish(hidden_NH))

    def keep(self, live: Sequence[int]) -> None:
        self.row_B = self.row_B[index(live, self.row_B.device)]
        self.cache.keep(live)

    def trunks(self, lengths: Sequence[int]) -> list[Trunk | None]:
        if self.states_STH is None:
            return super().trunks(lengths)
        return [
            Trunk(self.prompts[row // self.group_size], self.states_STH[row, : length - 1])
            for row, length in enumerate(lengths)
        ]

    def skip_to(self, length: int) -> None:
        self.cache.skip_to(length + 1)  # so that there is room for the next
        self.cache.length = length

    def held(self) -> Mapping[str, Sequence[Tensor]]:
        cache = self.cache
        pairs = (*cache.prompts.values(), *cache.rows.values(), *cache.states.values())
        states = [] if self.states_STH is None else [*self.prompts, self.states_STH]
        return {"cache": [tensor for pair in pairs for tensor in pair], "trunk": states}
