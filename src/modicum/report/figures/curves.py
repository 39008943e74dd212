"""Curves of training: what runs logged, against steps, tokens and time, and the figures of runs.

A run is smoothed by a centred mean over a tenth of its steps. Of several seeds a line is the mean
as far as all of them went; its band goes from the lowest seed to the highest. `gold` is of what is
right against the root of the KL from the base, under a learned reward."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from modicum import stats
from modicum.logged import METRICS, Metric, metric_of
from modicum.report import document
from modicum.report.read import Columns, RunRecord, colours
from modicum.report.style import INK, Axes, Figure, across, blank, legend, name, series
from modicum.report.words import ARROW, NONE, general, listed, say
from modicum.results import Column
from modicum.types import Frozen

AXES = {"step": "step", "tokens": "generated tokens", "seconds": "seconds of training"}
RAW_SHOWN = 8  # with more runs the raw values would hide the lines
POINTS = 50  # of a line, at most: the eye sees no more in a small panel
ACCURACY, PROBE = "reward/accuracy", "probe/accuracy"
Records = Sequence[RunRecord]
Points = list[tuple[float, float]]
ON_SAMPLES = ("Accuracy on training samples", "0 to 1", "correct completions (%)", "accuracy", "")
TRAINED = Metric(ACCURACY, *ON_SAMPLES)


class Line(Frozen):
    """The mean over seeds with the lowest and the highest, in the shown unit."""

    x: Column
    mean: Column
    low: Column
    high: Column

    def draw(self, axes: Axes, colour: str, label: str, ls: str = "-", width: float = 1.5) -> None:
        """The line, which the page can read by its label, and its band."""
        axes.fill_between(self.x, self.low, self.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(self.x, self.mean, ls, color=colour, linewidth=width, gid=name(label))

    def ends(self) -> str:
        """Its first and its last value in words."""
        return f"from {general(self.mean[0])} to {general(self.mean[-1])}"


def line(
    seeds: Iterable[Columns], metric: Metric, axis: str = "step", points: int = POINTS
) -> Line | None:
    """Mean and range over the seeds that logged both columns; with no x in common, the first."""
    found = [pair for columns in seeds if (pair := values(columns, metric, axis))[0].size]
    if not found:
        return None
    start, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    if start > end:
        found = found[:1]
        start, end = found[0][0][[0, -1]]
    most = max(int(((x >= start) & (x <= end)).sum()) for x, _ in found)
    at = np.linspace(start, end, min(points, most))
    each = np.stack([np.interp(at, x, smooth(y)) for x, y in found])
    return Line(at, each.mean(0), each.min(0), each.max(0))


def values(columns: Columns, metric: Metric, axis: str = "step") -> tuple[Column, Column]:
    """Where a run logged the metric, and its values in the shown unit."""
    if axis not in columns or metric.key not in columns:
        return np.empty(0), np.empty(0)
    x, y = columns[axis], columns[metric.key]
    seen = np.isfinite(x) & np.isfinite(y)
    return x[seen], metric.factor * y[seen]


def smooth(column: Column) -> Column:
    """A centred mean over about a tenth of the values (window of 1 for fewer than 20)."""
    window = np.ones(2 * (len(column) // 20) + 1)
    weights = np.convolve(np.ones(len(column)), window, mode="same")
    return np.convolve(column, window, mode="same") / weights


def metrics(runs: Sequence[Columns], short: bool = False) -> dict[Metric, str]:
    """What was logged, reward terms first, each with words on it if it never moves, or none.

    `short` takes the metrics of narrow columns. There what differs between runs moves, too."""
    logged = dict.fromkeys(key for columns in runs for key in columns)
    terms = [key for key in logged if key.startswith("reward/") and key != "reward/errors"]
    terms.sort(key="reward/mean".__ne__)
    # Of a single term the weighted reward says nothing more.
    terms = terms[1:] if len(terms) == 2 and terms[0] == "reward/mean" else terms
    drawn = [m.key for m in METRICS.values() if (m.short if short else m.shown)]
    found: dict[Metric, str] = {}
    for key in (*terms, *(key for key in drawn if not key.startswith("reward/"))):
        metric = TRAINED if key == ACCURACY else metric_of(key)
        seen = [column for run in runs if (column := values(run, metric)[1]).size]
        known = sorted({float(column[0]) for column in seen})
        if any(np.ptp(column) for column in seen) or (short and len(known) > 1):
            found[metric] = ""
        elif known:
            found[metric] = f"{metric.words} ({listed([general(value) for value in known])})"
    return found


def untrained(found: dict[Metric, str]) -> dict[Metric, str]:
    """What is compared between curricula: no reward of training, which says how easy problems are."""
    return {metric: same for metric, same in found.items() if not metric.key.startswith("reward/")}


def figures(records: Sequence[RunRecord], base: Sequence[float]) -> list[document.Figure]:
    """Learning curves, with the accuracies of the `base`s, and small multiples of all else logged."""
    found = metrics([record.columns for record in records])
    if len({record.config.get("curriculum") for record in records}) > 1:
        found = untrained(found)
    known = {metric.key: metric for metric in found}
    main = known.get(ACCURACY, known.get("reward/mean", known.get(PROBE)))
    rest = [metric for metric, same in found.items() if not same and metric != main]
    still = [same for metric, same in found.items() if same and metric != main]
    seeds = len(_shown(records)) < len(records)
    raw = not seeds and len(records) <= RAW_SHOWN
    values: dict[str, Any] = {"behind": say("behind", seeds=seeds, raw=raw), "still": still}
    made = []
    if main is not None:
        axes = [axis for axis in AXES if _lines(records, main, axis)]
        dashed = sorted({100 * b for b in base}) if main.key == ACCURACY else []
        draw = partial(_draw, records, [(main, axis) for axis in axes], dashed)
        values |= {"axes": [AXES[axis] for axis in axes], "title": main.title}
        values |= {"dashed": dashed, "words": _words(records, main)}
        made.append(document.figure("learning", draw, **values))
    if rest:
        draw = partial(_draw, records, [(metric, "step") for metric in rest], [])
        values |= {"titles": [m.words for m in rest], "words": _words(records, rest[0])}
        made.append(document.figure("training", draw, **values))
    return made


def table(records: Sequence[RunRecord], names: Sequence[str]) -> document.Table | None:
    """Every curve in numbers: means over the first and the last tenth of each run's steps."""
    moving = [m for m, still in metrics([r.columns for r in records]).items() if not still]
    columns = {m: [values(r.columns, m)[1] for r in records] for m in moving}
    measures = [(f"{m.title}, {m.shown}", list(map(_ends, columns[m]))) for m in moving]
    return document.across("The curves in numbers", measures, names)


def _shown(records: Sequence[RunRecord]) -> dict[str, int]:
    return {r.update: n for r, n in zip(records, colours(records), strict=True)}


def _lines(
    records: Records, metric: Metric, axis: str = "step"
) -> dict[str, tuple[Line, list[Columns]]]:
    seeds = {name: [r.columns for r in records if r.update == name] for name in _shown(records)}
    lines = {update: line(found, metric, axis) for update, found in seeds.items()}
    return {update: (found, seeds[update]) for update, found in lines.items() if found}


def _draw(
    records: Records, panels: Sequence[tuple[Metric, str]], base: Sequence[float], narrow: bool
) -> Figure:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = 1 if narrow else min(3, len(panels))
    rows, one = -(-len(panels) // columns), len({metric for metric, _ in panels}) == 1
    height = 2.8 if one and not narrow else 2.1
    figure = blank(across(narrow), height * rows + 0.4, fitted=True)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = _shown(records)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, (metric, axis)) in enumerate(zip(grid, panels, strict=False)):
        for update, (line, seeds) in _lines(records, metric, axis).items():
            colour, marker, style = series(shown[update])
            if len(seeds) == 1 and len(records) <= RAW_SHOWN:
                axes.plot(*values(seeds[0], metric, axis), color=colour, alpha=0.25, lw=0.7)
            line.draw(axes, colour, update, style, 1.6)
            if len(shown) > 1 or len(line.x) == 1:
                # Each line has its marks at places of its own.
                every = max(1, len(line.x) // 5)
                place = (shown[update] * every // 6 % every, every)
                axes.lines[-1].set(marker=marker, markersize=3.6, markevery=place)
        for value in base:
            axes.axhline(value, color=INK, linewidth=0.9, dashes=(4, 3))
        repeated = one and number > 0  # the same against another axis
        last = one or narrow or number >= len(panels) - columns
        axes.set(title="" if repeated else metric.title, xlabel=AXES[axis] if last else "")
        axes.set_ylabel(metric.shown if narrow or not repeated else "")
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=axis == "step"))
        if axis == "tokens":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if axes.get_ylim()[1] >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if axes.get_ylim()[0] > 0 or metric.factor == 100:
            axes.set_ylim(bottom=0)
    legend(figure, [(update, *series(n)) for update, n in shown.items()], bool(base))
    return figure


def _ends(column: Column) -> str:
    tenth = max(1, len(column) // 10)
    parts = (column[:tenth], column[-tenth:])
    return ARROW.join(general(float(part.mean())) for part in parts) if column.size else NONE


def _words(records: Sequence[RunRecord], metric: Metric) -> str:
    ends = [f"{update} {line.ends()}" for update, (line, _) in _lines(records, metric).items()]
    return say("curve_ends", metric=metric, ends=ends)


def gold(records: Mapping[str, RunRecord]) -> document.Figure | None:
    """The figure of the runs, by their names, that have a learned reward; None where none has."""
    pairs = [(n, r) for n, r in records.items() if np.isfinite(r.columns.get("gold/kl", ())).any()]
    found = {name: gold_curve(of.columns) for name, of in pairs}
    ends = ((name, of, of[:, of[1].argmax()]) for name, of in found.items())
    peaks = [(name, *peak, of[1, -1], bend(of), price(of)) for name, of, peak in ends]
    drawn = partial(_draw_gold, found, {name: best_of(of) for name, of in pairs})
    return document.figure("gold", drawn, peaks=peaks) if found else None


def gold_curve(columns: Mapping[str, Column]) -> Column:
    """Root of the KL, gold and learned score (%), tokens, of steps with a KL [4, S]; smoothed."""
    seen = np.isfinite(columns["gold/kl"])
    keys = ("gold/kl", "gold/strict", "gold/proxy")
    kl, gold, proxy = (smooth(columns[key][seen]) for key in keys)
    tokens = columns.get("tokens", columns["step"])[seen]
    return np.stack([np.sqrt(np.maximum(kl, 0)), 100 * gold, 100 * proxy, tokens])


def bend(of: Column) -> tuple[float, float, float] | None:
    """Gao's form of a curve's gain in gold, R(d) = d (alpha - beta ln d) (arXiv 2210.10760).

    By least squares over d > 0, the root of the KL: alpha and beta in points, and the KL in nats at
    which it is highest. None where there are too few points, or it bends upward."""
    d, gain = of[0][of[0] > 0], (of[1] - of[1][0])[of[0] > 0]
    if len(d) < 3:
        return None
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -d * np.log(d)], 1), gain)
    return (alpha, beta, float(np.exp(2 * (alpha / beta - 1)))) if beta > 0 else None


def price(of: Column) -> float | None:
    """Points that the learned score rose for each that gold rose, from the first step to the peak."""
    peak = of[1].argmax()
    gold, proxy = (float(of[row][peak] - of[row][0]) for row in (1, 2))
    return proxy / gold if gold > 0 else None


def best_of(record: RunRecord) -> Points:
    """Root of the KL and gold (%) of the best of n by the score, of the first step's samples."""
    groups = defaultdict[str, Points](list)
    for sample in (s for s in record.samples if s.step == record.samples[0].step):
        for term, score in sample.scores.items():
            if term.startswith("learned(") and "strict" in sample.logged:
                groups[sample.question].append((score, sample.logged["strict"]))
    most = min(map(len, groups.values()), default=0)
    return [
        (stats.best_of_kl(n) ** 0.5, 100 * fmean(stats.best_of(of, n) for of in groups.values()))
        for n in (1, 4, 16, 64)
        if n <= most
    ]


def _draw_gold(curves: Mapping[str, Column], best: Mapping[str, Points], narrow: bool) -> Figure:
    made = blank(across(narrow), 2.6 if narrow else 3.2, fitted=True)
    axes, looks = made.subplots(), [(run, *series(number)) for number, run in enumerate(curves)]
    for (run, colour, *_), (x, gold, proxy, _) in zip(looks, curves.values(), strict=True):
        axes.plot(x, gold, color=colour, lw=1.5, gid=name(run))
        axes.plot(x, proxy, ":", color=colour, lw=1.0)
        axes.plot(x[gold.argmax()], gold.max(), "*", color=colour, markersize=11)
        axes.plot(*np.array(best[run]).reshape(-1, 2).T, "o", color=colour, mfc="none")
    axes.set(xlabel="root of the KL from the base, in nats", ylabel="correct, score (%)")
    legend(made, looks)
    return made
