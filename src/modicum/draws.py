"""Which groups of a step are trained, and whether more are drawn for those that are not.

A group has a signal if the verdicts of its completions differ. Of a problem that is answered right
with probability p, a group of G has one with probability

    q = 1 - p^G - (1 - p)^G,    so that a group that is kept takes G / q completions

`refill` is the dynamic sampling of DAPO (arXiv 2503.14476), except that surplus goes by the order of
draw and never by what has ended first, and that all that is generated is counted as spent.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, NamedTuple

from modicum.limits import Positive
from modicum.spec import Spec, build

TRIED = 400  # steps of which an expectation is the mean


class Taken(NamedTuple):
    """What of the groups that were drawn has a part in the loss."""

    kept: Sequence[int] | None = None
    """Their numbers; None: all."""
    divides: str = "sampled"
    """Whether the loss is divided by all groups or by those that are kept."""
    cut: str = "score"
    """Under `mask` what max_tokens cut has no part."""


EVERYTHING = Taken()


class Groups(Spec):
    """A choice of the groups that are trained, in the order in which they were drawn."""

    selects: ClassVar[bool] = True
    """Whether groups may be left out."""
    divides: ClassVar[str] = "sampled"
    """What the loss is divided by unless it is said."""

    def kept(self, signals: Sequence[bool], count: int) -> list[int]:
        """The numbers of the groups that are trained, of a step that is to have `count`."""
        return [number for number, signal in enumerate(signals) if signal][:count]

    def more(self, signals: Sequence[bool], count: int, rounds: int) -> int:
        """How many groups to draw next, after so many rounds; 0: no more."""
        return 0


@dataclass(frozen=True)
class All(Groups):
    """Every group that was drawn."""

    name: ClassVar[str] = "all"
    selects: ClassVar[bool] = False

    def kept(self, signals: Sequence[bool], count: int) -> list[int]:
        return list(range(len(signals)))


@dataclass(frozen=True)
class Filter(Groups):
    """Those with a signal, of one draw."""

    name: ClassVar[str] = "filter"


@dataclass(frozen=True)
class Refill(Groups):
    """Those with a signal, of draws that go on until there are enough.

    At most `max_draws` rounds and `cap` times the problems of a step. A round has as many groups as
    the share that was kept so far asks for, taken as a tenth if it is less.
    """

    name: ClassVar[str] = "refill"
    divides: ClassVar[str] = "kept"
    max_draws: Positive = 10
    cap: Positive = 4

    def more(self, signals: Sequence[bool], count: int, rounds: int) -> int:
        drawn, kept = len(signals), sum(signals)
        missing = count - kept
        if missing <= 0 or rounds >= self.max_draws:
            return 0
        wanted = -(-missing * drawn // kept) if 10 * kept > drawn else 10 * missing
        return min(wanted, self.cap * count - drawn)


GROUPS: dict[str, type] = {cls.name: cls for cls in (All, Filter, Refill)}


def parse(text: str) -> Groups:
    """The choice that an expression such as `refill(cap=2)` names."""
    return build("groups", text, GROUPS)


class Expected(NamedTuple):
    """What comes of steps whose problems have known pass rates."""

    share: float
    """Of groups with a signal."""
    rollouts: float
    """Completions that are drawn for each group with a signal."""
    drawn: float
    """Groups of a step, surplus among them."""
    kept: float
    """Groups of a step that are trained."""
    empty: float
    """Share of steps in which none is."""


def signal_share(rate: float, size: int) -> float:
    """How often a group of `size` has a signal, at a pass rate."""
    return 1 - rate**size - (1 - rate) ** size


def expected(groups: Groups, rates: Sequence[float], count: int, size: int) -> Expected:
    """Means over steps of `count` groups of `size`, of problems with these pass rates alike."""
    shares = [signal_share(rate, size) for rate in rates]
    share, chance, steps = fmean(shares), random.Random(0), list[tuple[int, int]]()
    for _ in range(TRIED):
        signals, rounds, more = list[bool](), 0, count
        while more:
            signals += [chance.random() < chance.choice(shares) for _ in range(more)]
            rounds += 1
            more = groups.more(signals, count, rounds)
        # Groups without a signal are kept by some, and teach nothing.
        steps.append((len(signals), sum(signals[n] for n in groups.kept(signals, count))))
    drawn, kept = zip(*steps, strict=True)
    rollouts = size / share if share else float("inf")
    return Expected(share, rollouts, fmean(drawn), fmean(kept), kept.count(0) / TRIED)
