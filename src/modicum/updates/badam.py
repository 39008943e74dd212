"""BAdam (Luo, Yu, Li 2024, arXiv 2404.02827): one block of layers trains at a time, then the next.

The layers are split into blocks, one layer each or `blocks` of near-equal size. Every block
gets `every` steps of Adam from fresh moments, until all have had theirs; then the next round
begins. Backward stops below the block, which on average saves half of it. Departures:
blocks change at rollout boundaries; 10 steps a block and not 50 to 100, as RL runs are
short; the state of what stops can be kept; after a switch the rate may rise over `warmup`
steps, since fresh moments make the first step of every number a full one. In the reference
code the first block has one step less; here it has as many as the others.

`badam_ratio` is the reference code's other mode: every tensor trains `ratio` of its
entries, then others. Departure: a tensor is cut into runs of about 1/ratio neighbours, and
one entry of each trains, the next one in the next turn. So a round of turns trains every
entry once; each round starts at other entries of the runs, drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from modicum.spec import within
from modicum.types import UserError
from modicum.updates.base import DensePrepared, Method, Prepared, Selection
from modicum.updates.dense import Full, split
from modicum.updates.layout import MAX_LAYERS, divided, layout
from modicum.updates.schedule import MAX_STEPS, Decision, Policy, Turns

Order = Literal["random", "ascending", "descending"]


class BlockSchedule(Turns):
    """Which block trains."""

    def __init__(self, method: BAdam, blocks: Mapping[str, frozenset[str]], seed: int) -> None:
        super().__init__(method.every, method.state, seed)
        self.blocks, self.order, self.warmup = blocks, method.order, method.warmup
        self.start = self.blocks[self._block(0)]

    def _block(self, number: int) -> str:
        """The name of the block of a turn; a round of turns has every block once."""
        names = list(self.blocks)
        cycle, place = divmod(number, len(names))
        if self.order == "random":
            names = [names[i] for i in self.rng(cycle).permutation(len(names))]
        return names[-1 - place] if self.order == "descending" else names[place]

    def turn(self, number: int) -> Decision:
        """The next block of the round."""
        block = self._block(number)
        evidence = {"block": block, "round": number // len(self.blocks) + 1}
        return Decision(self.blocks[block], evidence)

    def rates(self, steps: int) -> Mapping[str, float]:
        """Rising from 1/warmup to 1 in the first steps of a turn."""
        taken = max(1, steps - self.since)
        if taken >= self.warmup:
            return {}
        names = self.blocks[self._block(max(0, self.number - 1))]
        return dict.fromkeys(names, taken / self.warmup)

    def typical(self, parameters: Mapping[str, nn.Parameter]) -> list[frozenset[str]]:
        return list(self.blocks.values())


@dataclass(frozen=True)
class BAdam(Method):
    """One block of layers trains at a time, with Adam from fresh moments, then the next."""

    name: ClassVar[str] = "badam"
    examples: ClassVar[tuple[str, ...]] = (
        "badam(every=2)",
        "badam(every=1, order='descending', blocks=2, ends=True, warmup=2, state='cpu')",
    )
    every: int = 10
    order: Order = "random"
    blocks: int = 0
    ends: bool = False
    warmup: int = 0
    state: Policy = "reset"

    def __post_init__(self) -> None:
        within("badam: every", self.every, 1, MAX_STEPS)
        within("badam: blocks (0: one for every layer)", self.blocks, 0, MAX_LAYERS)
        within("badam: warmup", self.warmup, 0, MAX_STEPS)

    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        chosen = (where or Full()).select(model)
        layers, below, above = divided(layout(model), chosen)
        if self.blocks > len(layers):
            raise UserError(f"{self}: there are only {len(layers)} layers to make blocks of")
        numbers = list(layers)
        blocks: dict[str, frozenset[str]] = {}
        for part in split(len(layers), self.blocks or len(layers)):
            inside = [numbers[i] for i in part]
            first, last = inside[0], inside[-1]
            text = f"layers {first} to {last}" if last > first else f"layer {first}"
            blocks[text] = frozenset().union(*(layers[layer] for layer in inside))
        if self.ends:
            blocks = {"embedding": below, **blocks, "norm and head": above}
        blocks = {text: names for text, names in blocks.items() if names}
        if not blocks:
            raise UserError(f"{self} @ {where}: no layer is selected; ends=True takes the others")
        named = frozenset().union(*blocks.values())
        trainable = {n: p for n, p in chosen.items() if n in named}
        return DensePrepared(model, trainable, schedule=BlockSchedule(self, blocks, seed))


class RatioSchedule(Turns):
    """Which entries of every tensor train."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], ratio: float, every: int, seed: int
    ) -> None:
        super().__init__(every, "reset", seed)
        self.parameters, self.ratio = parameters, ratio
        # A model without values (for a preview) needs no indices either.
        if not any(p.is_meta for p in parameters.values()):
            self.entries = self._entries(0)

    def size(self, name: str, parameter: nn.Parameter) -> int:
        """The ratio of a tensor's entries, one at least."""
        return max(1, round(self.ratio * parameter.numel()))

    def _entries(self, number: int) -> dict[str, Tensor]:
        """For every tensor the flat indices, ascending, that train in turn `number`."""
        found = {}
        for position, (name, parameter) in enumerate(self.parameters.items()):
            total, count = parameter.numel(), self.size(name, parameter)
            bounds = np.arange(count + 1, dtype=np.int64) * total // count
            lengths = np.diff(bounds)
            cycle, turn = divmod(number, int(lengths.max()))
            starts = self.rng(cycle, position).integers(lengths)
            entries = torch.from_numpy(bounds[:-1] + (starts + turn) % lengths)
            found[name] = entries.to(parameter.device)
        return found

    def turn(self, number: int) -> Decision:
        """The next entry of every run of neighbours."""
        # The first turn has the entries that the optimizer was made with, and not equal ones.
        entries = self.entries if number == 0 else self._entries(number)
        evidence = {"turn": number + 1, "entries": sum(e.numel() for e in entries.values())}
        return Decision(frozenset(self.parameters), evidence, entries=entries)


@dataclass(frozen=True)
class BAdamRatio(Method):
    """A part of the entries of every tensor trains at a time, then others."""

    name: ClassVar[str] = "badam_ratio"
    examples: ClassVar[tuple[str, ...]] = ("badam_ratio(ratio=0.25, every=2)",)
    ratio: float = 0.05
    every: int = 10

    def __post_init__(self) -> None:
        within("badam_ratio: ratio", self.ratio, 0, 1, above=True, below=True)
        within("badam_ratio: every", self.every, 1, MAX_STEPS)

    def apply(self, model: nn.Module, seed: int = 0, where: Selection | None = None) -> Prepared:
        chosen = (where or Full()).select(model)
        schedule = RatioSchedule(chosen, self.ratio, self.every, seed)
        return DensePrepared(model, chosen, schedule=schedule)
