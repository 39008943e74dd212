"""The figures of a study's report in its order, each with its caption and its words.

The words are for those who do not see the figure: what it shows and its main values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from modicum.report import frame
from modicum.report.study import (
    changes,
    curves,
    difficulty,
    forest,
    frontier,
    signals,
    tuning,
)
from modicum.report.study.analysis import Analysis
from modicum.report.study.families import ranked
from modicum.report.study.read import Study

NAMED = 20  # arms that a text names


def gather(study: Study) -> list[frame.Figure]:
    """The figures that the study has data for."""
    return [
        *_forest(study.analysis),
        *_frontiers(study.analysis),
        *_difficulty(study.analysis),
        *_learning(study),
        *_signals(study),
        *_tuning(study.analysis),
        *_changes(study),
    ]


def listed(texts: Iterable[str], word: str = "and") -> str:
    """a, b and c."""
    found = list(texts)
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} {word} {found[-1]}"


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - NAMED
    return "; ".join(texts[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _forest(analysis: Analysis) -> list[frame.Figure]:
    found = [arm for arm in ranked(analysis) if arm.difference is not None]
    if not found:
        return []
    values = [f"{a.name} {forest.words(a.difference)}, {a.verdict}" for a in found if a.difference]
    margin = f"{100 * analysis.margin:g}"
    return [
        frame.Figure(
            "differences",
            f"Difference in {analysis.primary} from {analysis.control} in points, with 90 %"
            f" interval and verdict: {_some(values)}.",
            f"Difference in {analysis.primary} from {analysis.control}: mean, 90 % interval"
            " (thick; tests against the margin read its ends) and 95 % interval (thin; tests"
            f" against 0). Shaded: the margin of {margin} points, fixed before. An arrow marks what lies beyond the axis; its"
            " numbers stand beside it. Placebos and failed arms stand apart.",
            partial(forest.draw, analysis),
        )
    ]


def _frontiers(analysis: Analysis) -> list[frame.Figure]:
    made = []
    for axis in frontier.AXES:
        found = frontier.points(analysis, axis)
        if len(found) < 2:
            continue
        best = [f"{p.arm.name} ({axis.text(p.x)}, {p.y:.1f} %)" for p in found if p.best]
        made.append(
            frame.Figure(
                f"accuracy-{axis.name}",
                f"{analysis.primary.capitalize()} against {axis.title}. On the frontier:"
                f" {_some(best)}.",
                f"{analysis.primary.capitalize()} over seeds (with 95 % interval) against"
                f" {axis.title}{', on a logarithmic scale' if axis.log else ''}. The steps are"
                " the frontier: no cheaper arm reached as much (bold names; by the means, so two"
                " that differ by less than their intervals may change places).",
                partial(frontier.draw, analysis, axis),
            )
        )
    return made


def _difficulty(analysis: Analysis) -> list[frame.Figure]:
    levels = list(difficulty.levels(analysis))
    if len(levels) < 2:
        return []
    first, last = levels[0], levels[-1]
    values = [
        f"{name} {100 * found[first]:.0f} and {100 * found[last]:.0f}"
        for name, found in difficulty.rows(analysis)
        if first in found and last in found
    ]
    return [
        frame.Figure(
            "difficulty",
            f"Accuracy (%) by difficulty; on the problems of {first} and of {last}: {_some(values)}.",
            f"{analysis.primary.capitalize()} (%) by the difficulty of the {analysis.split}"
            " problems, mean over seeds. Darker is more.",
            partial(difficulty.draw, analysis),
        )
    ]


def _learning(study: Study) -> list[frame.Figure]:
    made = []
    metric = curves.metric(study)
    unit = study.analysis.budget.unit if study.analysis.budget else "steps"
    # What the budget counts comes first: there all arms end at the same place.
    for against in sorted(curves.AGAINST, key=lambda name: name != unit):
        column, title = curves.AGAINST[against]
        lines = {
            arm.name: found
            for arm in curves.arms(study)
            if (found := curves.line(study.curves[arm.slug].seeds, column, metric)) is not None
        }
        if not lines:
            continue
        factor, what = (100, "%") if metric == curves.METRIC else (1, "reward")
        ends = [
            f"{name} from {factor * found.mean[0]:.3g} to {factor * found.mean[-1]:.3g}"
            for name, found in lines.items()
        ]
        made.append(
            frame.Figure(
                f"learning-{against}",
                f"Learning curves against {title}, {what}: {_some(ends)}.",
                f"{'Accuracy' if metric == curves.METRIC else 'Reward'} on training samples against"
                f" {title}: mean over seeds, each smoothed over a tenth of its steps; the band goes"
                " from the lowest to the highest seed. Grey: the control. Dashed: the base on"
                " held-out problems. Diamonds: held-out accuracy, with its 95 % interval at the"
                " end.",
                partial(curves.draw, study, against),
            )
        )
    return made


def _signals(study: Study) -> list[frame.Figure]:
    if not study.curves:
        return []
    moving, still = signals.gather(study)
    if not moving:
        return []
    names = listed(signal.words for signal in moving)
    same = f" The same in every step of every run: {listed(still)}." if still else ""
    slug = study.control.slug
    ends = [
        f"{s.words} from {frame.number(s.factor * found.mean[0])}"
        f" to {frame.number(s.factor * found.mean[-1])}"
        for s in moving
        if (found := s.lines.get(slug)) is not None
    ]
    return [
        frame.Figure(
            "signals",
            f"Against the step, for each arm: {names}. {study.control.name}: {_some(ends)}.",
            f"What else was logged, against the step: {names}. Means over seeds; a column has one"
            " scale, given below its name; the number is the last value; grey is the control."
            f"{same}",
            partial(signals.draw, study, moving),
        )
    ]


def _tuning(analysis: Analysis) -> list[frame.Figure]:
    found = tuning.arms(analysis)
    if not any(t.accuracy is not None for arm in found for t in arm.tries):
        return []
    edges = [arm.name for arm in found if arm.rate_at_edge]
    rates = [
        f"{arm.name} {tuning.rate_text(arm.learning_rate)}"
        for arm in found
        if arm.learning_rate is not None
    ]
    at_edge = (
        f" At the edge of its grid, so that a better rate may lie outside: {listed(edges)}."
        if edges
        else " No best rate lies at the edge of its grid."
    )
    return [
        frame.Figure(
            "tuning",
            f"Accuracy on tuning problems against the learning rate. Chosen: {_some(rates)}."
            f"{at_edge}",
            "Accuracy on tuning problems, which are neither trained on nor tested on, against"
            " the learning rate. Ringed: the chosen rate. A cross: the try failed."
            f"{at_edge}",
            partial(tuning.draw, analysis),
        )
    ]


def _changes(study: Study) -> list[frame.Figure]:
    if not changes.drawable(study):
        return []
    sizes = [
        f"{arm.name} {100 * found.relative_norm:.2g} %"
        for arm, found in changes.measured(study)
        if found.relative_norm is not None
    ]
    return [
        frame.Figure(
            "changes",
            "Size of the change in every layer and part of the weights. Over all weights:"
            f" {_some(sizes)}.",
            changes.caption(study),
            partial(changes.draw, study),
        )
    ]
