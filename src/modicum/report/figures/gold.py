"""What is right against how far the policy is from its base (the root of the KL), under a learned reward."""

import itertools
import statistics
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from modicum import stats
from modicum.report import document
from modicum.report.figures.curves import smooth
from modicum.report.read import RunRecord
from modicum.report.style import BROAD, NARROW, Figure, blank, legend, name, series
from modicum.results import Column

NS = (1, 4, 16, 64)


def figure(records: Mapping[str, RunRecord]) -> document.Figure | None:
    """The figure of the runs, by their names, that have a learned reward; None where none has."""
    curves = {
        run: curve(record.columns) for run, record in records.items() if "gold/kl" in record.columns
    }
    curves = {run: found for run, found in curves.items() if found.size}
    peaks = [(run, *of[:, of[1].argmax()], of[1, -1]) for run, of in curves.items()]
    drawn = partial(_draw, curves, {run: [*best_of(records[run])] for run in curves})
    return document.figure("gold", drawn, peaks=peaks) if curves else None


def curve(columns: Mapping[str, Column]) -> Column:
    """Root of the KL, gold and learned score (%), tokens, of all steps [4, S]; smoothed as curves are."""
    kl, gold, proxy = (columns[f"gold/{key}"] for key in ("kl", "strict", "proxy"))
    seen, tokens = np.isfinite(kl + gold + proxy), columns.get("tokens", columns["step"])
    kl, gold, proxy = (
        smooth(column[seen]) if seen.any() else column[seen] for column in (kl, gold, proxy)
    )
    return np.stack([np.sqrt(np.maximum(kl, 0)), 100 * gold, 100 * proxy, tokens[seen]])


def best_of(record: RunRecord) -> Iterator[tuple[float, float]]:
    """Root of the KL and gold (%) of the best of n by the score, of the first step's samples."""
    first, groups = (
        min((s.step for s in record.samples), default=0),
        dict[str, list[tuple[float, bool]]](),
    )
    for sample in record.samples:
        score = next((v for k, v in sample.scores.items() if k.startswith("learned(")), None)
        if sample.step == first and score is not None and "strict" in sample.logged:
            groups.setdefault(sample.question, []).append((score, bool(sample.logged["strict"])))
    least = min(map(len, groups.values()), default=0)
    for n in itertools.takewhile(lambda n: n <= least, NS):
        gold = statistics.fmean(stats.best_of(of, n) for of in groups.values())
        yield stats.best_of_kl(n) ** 0.5, 100 * gold


def _draw(
    curves: Mapping[str, Column], best: Mapping[str, list[tuple[float, float]]], narrow: bool
) -> Figure:
    made = blank(*((NARROW, 2.6) if narrow else (BROAD, 3.2)), fitted=True)
    axes, looks = made.subplots(), []
    for number, (run, (x, gold, proxy, _)) in enumerate(curves.items()):
        looks.append((run, *series(number)))
        colour, peak = looks[-1][1], gold.argmax()
        name(axes.plot(x, gold, color=colour, lw=1.5)[0], run)
        axes.plot(x, proxy, ":", color=colour, lw=1.0)
        axes.plot(x[peak], gold[peak], "*", color=colour, markersize=11)
        axes.plot(*zip(*best[run], strict=True), "o", color=colour, mfc="none") if best[
            run
        ] else None
    axes.set_xlabel("root of the KL from the base (nats)")
    axes.set_ylabel("correct completions, learned score (%)")
    legend(made, looks)
    return made
