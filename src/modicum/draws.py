"""Which groups of a step are trained, and whether more are drawn for those that are not.

A group has a signal if the verdicts of its completions differ. Of a problem that is answered right
with probability p, a group of G has one with probability

    q = 1 - p^G - (1 - p)^G,    so that a group that is kept takes G / q completions

`refill` is the dynamic sampling of DAPO (arXiv 2503.14476), except that surplus goes by the order of
draw and never by what has ended first, and that all that is generated is counted as spent."""

from collections.abc import Sequence
from statistics import fmean
from typing import ClassVar, NamedTuple

from modicum.limits import Positive
from modicum.spec import Spec, build


class Taken(NamedTuple):
    """What of the groups that were drawn has a part in the loss."""

    kept: Sequence[int] | None = None  # their numbers; None: all
    divides: str = "sampled"  # whether the loss is divided by all groups or by those that are kept
    cut: str = "score"  # under `mask` what max_tokens cut has no part


EVERYTHING = Taken()


class Groups(Spec):
    """A choice of the groups that are trained, in the order in which they were drawn."""

    selects: ClassVar[bool] = True  # whether groups may be left out
    divides: ClassVar[str] = "sampled"  # what the loss is divided by unless it is said

    def kept(self, signals: Sequence[bool], count: int) -> list[int]:
        """The numbers of the groups that are trained, of a step that is to have `count`."""
        return [number for number, signal in enumerate(signals) if signal][:count]

    def more(self, signals: Sequence[bool], count: int, rounds: int) -> int:
        """How many groups to draw next, after so many rounds; 0: no more."""
        return 0

    def drawn(self, count: int, share: float) -> float:
        """How many groups a step of `count` draws, about, if this share of them has a signal."""
        return count


class All(Groups):
    """Every group that was drawn."""

    selects: ClassVar[bool] = False

    def kept(self, signals: Sequence[bool], count: int) -> list[int]:
        return list(range(len(signals)))


class Filter(Groups):
    """Those with a signal, of one draw."""


class Refill(Groups):
    """Those with a signal, of draws that go on until there are enough."""

    divides: ClassVar[str] = "kept"
    max_draws: Positive = 10
    cap: Positive = 4

    def more(self, signals: Sequence[bool], count: int, rounds: int) -> int:
        drawn, kept = len(signals), sum(signals)
        if (missing := count - kept) <= 0 or rounds >= self.max_draws:
            return 0
        wanted = -(-missing * drawn // kept) if 10 * kept > drawn else 10 * missing
        return min(wanted, self.cap * count - drawn)

    def drawn(self, count: int, share: float) -> float:
        return min(self.cap, 1 / share if share else self.cap) * count


GROUPS: dict[str, type] = {cls.name: cls for cls in (All, Filter, Refill)}


def parse(text: str) -> Groups:
    """The choice that an expression such as `refill(cap=2)` names."""
    return build("groups", text, GROUPS)


class Expected(NamedTuple):
    """What a step comes to, about; surplus of its last round is left out."""

    share: float  # of groups with a signal
    rollouts: float | None  # for each of them; None: there is none
    drawn: float  # groups of a step, and how many of them are to have a signal
    signals: float


def expected(choice: Groups, rates: Sequence[float], count: int, size: int) -> Expected:
    """Of a step of `count` groups of `size`, of problems with these pass rates alike."""
    share = fmean(1 - rate**size - (1 - rate) ** size for rate in rates)
    drawn = choice.drawn(count, share)
    return Expected(share, size / share if share else None, drawn, min(count, drawn * share))
