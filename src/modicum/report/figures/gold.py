"""What is right against the root of the KL from the base, under a learned reward."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from functools import partial

import numpy as np

from modicum import stats
from modicum.report import document
from modicum.report.figures.curves import smooth
from modicum.report.read import RunRecord
from modicum.report.style import BROAD, NARROW, Figure, blank, legend, name, series
from modicum.results import Column

Points = list[tuple[float, float]]


def figure(records: Mapping[str, RunRecord]) -> document.Figure | None:
    """The figure of the runs, by their names, that have a learned reward; None where none has."""
    found = {
        run: of for run, of in records.items() if np.isfinite(of.columns.get("gold/kl", ())).any()
    }
    curves = {run: curve(of.columns) for run, of in found.items()}
    peaks = [
        (run, *of[:, of[1].argmax()], of[1, -1], bend(of), price(of)) for run, of in curves.items()
    ]
    drawn = partial(_draw, curves, {run: best_of(of) for run, of in found.items()})
    return document.figure("gold", drawn, peaks=peaks) if found else None


def curve(columns: Mapping[str, Column]) -> Column:
    """Root of the KL, gold and learned score (%), tokens, of steps with a KL [4, S]; smoothed."""
    seen = np.isfinite(columns["gold/kl"])
    keys = ("gold/kl", "gold/strict", "gold/proxy")
    kl, gold, proxy = (smooth(columns[key][seen]) for key in keys)
    tokens = columns.get("tokens", columns["step"])[seen]
    return np.stack([np.sqrt(np.maximum(kl, 0)), 100 * gold, 100 * proxy, tokens])


def bend(of: Column) -> tuple[float, float, float] | None:
    """Gao's form of a curve's gain in gold, R(d) = d (alpha - beta ln d) (arXiv 2210.10760).

    By least squares over d > 0, the root of the KL: alpha and beta in points, and the KL in nats at
    which it is highest. None where there are too few points, or it bends upward.
    """
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
    found = {
        n: [stats.best_of(of, n) for of in groups.values()] for n in (1, 4, 16, 64) if n <= most
    }
    return [(stats.best_of_kl(n) ** 0.5, 100 * statistics.fmean(of)) for n, of in found.items()]


def _draw(curves: Mapping[str, Column], best: Mapping[str, Points], narrow: bool) -> Figure:
    made = blank(*((NARROW, 2.6) if narrow else (BROAD, 3.2)), fitted=True)
    axes, looks = made.subplots(), [(run, *series(number)) for number, run in enumerate(curves)]
    for (run, colour, *_), (x, gold, proxy, _) in zip(looks, curves.values(), strict=True):
        name(axes.plot(x, gold, color=colour, lw=1.5)[0], run)
        axes.plot(x, proxy, ":", color=colour, lw=1.0)
        axes.plot(x[gold.argmax()], gold.max(), "*", color=colour, markersize=11)
        axes.plot(*np.array(best[run]).reshape(-1, 2).T, "o", color=colour, mfc="none")
    axes.set_xlabel("root of the KL from the base, in nats")
    axes.set_ylabel("correct, score (%)")
    legend(made, looks)
    return made
