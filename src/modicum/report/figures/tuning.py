"""Tuning curves: accuracy on the tuning problems against the learning rate, a panel an arm."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from modicum.report import document, style
from modicum.report.study.families import family
from modicum.report.style import INK, Axes, Figure, tip
from modicum.report.words import rate, say
from modicum.results import Analysis, ArmResult


def arms(analysis: Analysis) -> list[ArmResult]:
    """The arms whose rate was chosen among several, in the order of the study."""
    return [arm for arm in analysis.arms if len(arm.tries) > 1]


def figure(analysis: Analysis) -> document.Figure | None:
    """The curves, where any try ended."""
    found = arms(analysis)
    if not any(t.accuracy is not None for arm in found for t in arm.tries):
        return None
    edges = [arm.name for arm in found if arm.rate_at_edge]
    rates = [f"{a.name} {rate(a.learning_rate)}" for a in found if a.learning_rate is not None]
    edge = say("at_edge", edges=edges, most=max(len({t.rate for t in arm.tries}) for arm in found))
    return document.figure("tuning", partial(_draw, analysis), at_edge=edge, rates=rates)


def ticks(rates: Sequence[float]) -> list[float]:
    """The lowest and the highest rate, and powers of ten that are not too near to them."""
    low, high = math.log10(min(rates)), math.log10(max(rates))
    room = 0.3 * (high - low)
    powers = range(math.ceil(low + room), math.floor(high - room) + 1)
    return sorted({min(rates), max(rates), *(10.0**power for power in powers)})


def _draw(analysis: Analysis, narrow: bool) -> Figure:
    """The figure: the chosen rate is ringed, one at the edge says so, a cross failed."""
    shown = arms(analysis)
    figure, grid = style.grid(
        [arm.name for arm in shown], narrow, "learning rate", "accuracy, tuning problems (%)"
    )
    rates = [tried.rate for arm in shown for tried in arm.tries if tried.rate > 0]
    seen = [100 * t.accuracy for arm in shown for t in arm.tries if t.accuracy is not None]
    low, high = min(seen, default=0.0), max(seen, default=100.0)
    room = 0.12 * (high - low) or 2.0
    for axes, arm in zip(grid, shown, strict=True):
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 1.6, max(rates) * 1.6)
        axes.set_xticks(ticks(rates), list(map(rate, ticks(rates))))
        # The outer labels stay within their panel: neighbours would touch.
        labels = axes.get_xticklabels()
        for label in labels[-1:]:
            label.set_horizontalalignment("right")
        for label in labels[:1]:
            label.set_horizontalalignment("left")
        axes.set_ylim(max(-3.0, low - room), min(103.0, high + room))
        style.numbers(axes, "y", 4)
        _panel(axes, arm, family(analysis, arm).colour)
    return figure


def _panel(axes: Axes, arm: ArmResult, colour: str) -> None:
    from matplotlib.ticker import NullFormatter

    axes.xaxis.set_minor_formatter(NullFormatter())
    tried = [(t.rate, 100 * t.accuracy) for t in arm.tries if t.accuracy is not None]
    axes.plot(*zip(*tried, strict=True), color=colour, linewidth=1.2) if tried else None
    for at, accuracy in tried:
        ring: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 1.2, "markersize": 7}
        # Rates are written with a few digits.
        chosen = arm.learning_rate is not None and abs(at / arm.learning_rate - 1) < 1e-3
        look = ring if chosen else {"markersize": 3.5}
        (mark,) = axes.plot(at, accuracy, "o", color=colour, zorder=3, **look)
        tip(mark, f"{arm.name} at {at:.2g}: {accuracy:.1f} %")
    for failed in (t for t in arm.tries if t.accuracy is None):
        bottom = axes.get_ylim()[0]
        (mark,) = axes.plot(failed.rate, bottom, "x", color=INK, markersize=5, clip_on=False)
        tip(mark, f"{arm.name} at {failed.rate:.2g}: {failed.failed or 'failed'}")
    if arm.rate_at_edge:
        low, high = axes.get_ylim()
        clear = all(accuracy > low + 0.3 * (high - low) for _, accuracy in tried)
        style.remark(axes, "best at the edge", high=not clear)
