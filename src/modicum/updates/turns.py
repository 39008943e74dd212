"""What trains goes in turns: LISA (arXiv 2403.17919), and the two modes of BAdam (2404.02827).

docs/updates.md has the departures. `badam_ratio` cuts a tensor into runs of about 1/ratio
neighbours, of which one entry each trains, the next one in the next turn: a round of turns
trains every entry once, and starts at others of the runs, drawn from the seed."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from modicum.limits import Between
from modicum.types import UserError
from modicum.updates.base import Scheduled
from modicum.updates.dense import split
from modicum.updates.layout import divided
from modicum.updates.members import Layers, LayersOrNone, Steps, StepsOrNone
from modicum.updates.schedule import Decision, Named, Policy, Turns

MOST_SETS = 64  # for the preview's average; beyond, so many are drawn


class LisaSchedule(Turns):
    """Which layers train, drawn anew every so many steps."""

    def __init__(self, method: Any, model: nn.Module, chosen: Named, seed: int) -> None:
        super().__init__(method.every, method.state, seed)
        self.layers, below, above = divided(model, chosen)
        self.count = method.layers
        if self.count > len(self.layers):
            raise UserError(f"{method}: there are only {len(self.layers)} layers to draw from")
        self.always = below | above if method.ends else frozenset()
        self.start, self.named = self.turn(0).active, self._names(list(self.layers))

    def _names(self, layers: Sequence[int]) -> frozenset[str]:
        return self.always.union(*(self.layers[layer] for layer in layers))

    def turn(self, number: int) -> Decision:
        drawn = self.rng(number).choice(sorted(self.layers), self.count, replace=False)
        layers = sorted(drawn.tolist())
        return Decision(self._names(layers), {"layers": layers, "draw": number + 1})

    def typical(self, parameters: Mapping[str, nn.Parameter]) -> list[frozenset[str]]:
        """All sets of so many layers, or some of them."""
        if comb(len(self.layers), self.count) <= MOST_SETS:
            return [self._names(layers) for layers in combinations(self.layers, self.count)]
        return [self.turn(number).active for number in range(MOST_SETS)]


class Lisa(Scheduled):
    """A few random layers train at a time, others after every so many steps."""

    begins = LisaSchedule
    layers: Layers = 2
    every: Steps = 20
    ends: bool = True
    state: Policy = "reset"


class BlockSchedule(Turns):
    """Which block trains."""

    def __init__(self, method: Any, model: nn.Module, chosen: Named, seed: int) -> None:
        super().__init__(method.every, method.state, seed)
        self.order, self.warmup = method.order, method.warmup
        layers, below, above = divided(model, chosen)
        if method.blocks > len(layers):
            raise UserError(f"{method}: there are only {len(layers)} layers to make blocks of")
        numbers, blocks = list(layers), dict[str, frozenset[str]]()
        for part in split(len(layers), method.blocks or len(layers)):
            inside = numbers[part.start : part.stop]
            first, last = inside[0], inside[-1]
            text = f"layers {first} to {last}" if last > first else f"layer {first}"
            blocks[text] = frozenset().union(*(layers[layer] for layer in inside))
        if method.ends:
            blocks = {"embedding": below, **blocks, "norm and head": above}
        self.blocks = {text: names for text, names in blocks.items() if names}
        if not self.blocks:
            raise UserError(f"{method}: no layer is selected; ends=True takes the others")
        self.named = frozenset().union(*self.blocks.values())
        self.start = self.turn(0).active

    def turn(self, number: int) -> Decision:
        """The next block; a round of turns has every block once."""
        names = list(self.blocks)
        cycle, place = divmod(number, len(names))
        if self.order == "random":
            names = [names[i] for i in self.rng(cycle).permutation(len(names))]
        block = names[-1 - place] if self.order == "descending" else names[place]
        return Decision(self.blocks[block], {"block": block, "round": cycle + 1})

    def rates(self, steps: int) -> Mapping[str, float]:
        """Rising from 1/warmup to 1 in the first steps of a turn."""
        taken = max(1, steps - self.since)
        if taken >= self.warmup:
            return {}
        return dict.fromkeys(self.turn(max(0, self.number - 1)).active, taken / self.warmup)

    def typical(self, parameters: Mapping[str, nn.Parameter]) -> list[frozenset[str]]:
        return list(self.blocks.values())


class BAdam(Scheduled):
    """One block of layers trains at a time, with Adam from fresh moments, then the next."""

    begins = BlockSchedule
    every: Steps = 10
    order: Literal["random", "ascending", "descending"] = "random"
    blocks: LayersOrNone = 0
    ends: bool = False
    warmup: StepsOrNone = 0
    state: Policy = "reset"


class RatioSchedule(Turns):
    """Which entries of every tensor train."""

    def __init__(self, method: Any, model: nn.Module, chosen: Named, seed: int) -> None:
        super().__init__(method.every, "reset", seed)
        self.parameters, self.share = chosen, method.ratio
        # A model without values (for a preview) needs no indices either.
        if not any(p.is_meta for p in chosen.values()):
            self.entries = self._entries(0)

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
        # The first turn has the entries that the optimizer was made with, and not equal ones.
        entries = self.entries if number == 0 else self._entries(number)
        evidence = {"turn": number + 1, "entries": sum(e.numel() for e in entries.values())}
        return Decision(frozenset(self.parameters), evidence, entries=entries)


class BAdamRatio(Scheduled):
    """A part of the entries of every tensor trains at a time, then others."""

    name = "badam_ratio"
    begins = RatioSchedule
    ratio: Between = 0.05
    every: Steps = 10
