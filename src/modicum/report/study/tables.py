"""The tables of a study's report: its arms, what they cost, the tests behind the verdicts."""

from __future__ import annotations

from modicum.report import tables
from modicum.report.frame import Cell, Table, table
from modicum.report.study.analysis import Analysis, Arm
from modicum.report.study.families import family, ranked
from modicum.report.study.forest import interval, points
from modicum.report.study.tuning import rate_text
from modicum.stats import Interval

NONE = tables.NONE
EDGE = " at\u00a0edge"
TESTS = ("noninferior", "superior", "equivalent", "inferior")


def arms(analysis: Analysis) -> Table:
    """A row for each arm: verdict, share, accuracy, difference, retention, cost, rate, seeds."""
    heads = (
        "arm",
        "verdict",
        "trained",
        f"{analysis.primary} (%), 95 %",
        "difference, 90 %",
        "retention, 95 %",
        "time",
        "memory",
        "rate",
        "seeds",
    )
    rows = []
    for arm in ranked(analysis):
        cost = arm.cost
        rows.append(
            [
                Cell(arm.name, series=family(analysis, arm).series, code=True),
                Cell(arm.verdict),
                Cell(tables.share(cost.share), cost.share),
                _accuracy(arm.accuracy),
                _difference(arm),
                _retention(arm.retention),
                _ratio(cost.time_ratio),
                _ratio(cost.memory_ratio),
                _rate(arm),
                _seeds(analysis, arm),
            ]
        )
    return table("The arms, the best first", heads, rows, wrap=True)


def costs(analysis: Analysis) -> Table:
    """What every arm used, as measured: means over its seeds."""
    heads = (
        "arm",
        "trained parameters",
        "in training at once",
        "optimizer",
        "peak memory",
        "above the start",
        "seconds",
        "a step",
        "steps",
        "tokens",
        "FLOPs",
        "tuning runs",
    )
    rows = []
    for arm in ranked(analysis):
        cost = arm.cost
        rows.append(
            [
                Cell(arm.name, series=family(analysis, arm).series, code=True),
                Cell(tables.count(cost.parameters), cost.parameters),
                Cell(tables.count(cost.active_parameters_mean), cost.active_parameters_mean),
                Cell(_memory(cost.optimizer_bytes), cost.optimizer_bytes),
                Cell(tables.memory(cost.peak_memory_bytes), cost.peak_memory_bytes),
                Cell(tables.memory(cost.memory_bytes), cost.memory_bytes),
                Cell(tables.decimal(cost.seconds), cost.seconds),
                Cell(_step(cost.step_seconds), cost.step_seconds),
                Cell(tables.decimal(cost.steps), cost.steps),
                Cell(tables.short(cost.generated_tokens), cost.generated_tokens),
                _ratio(cost.flops_ratio),
                Cell(tables.count(cost.tuning_runs), cost.tuning_runs),
            ]
        )
    return table("What the arms cost", heads, rows)


def tests(analysis: Analysis) -> Table | None:
    """The p-values behind the verdicts, as they are and after Holm; None without any."""
    tested = [arm for arm in ranked(analysis) if arm.tests]
    if not tested:
        return None
    margin = f"{100 * analysis.margin:g}"
    heads = (
        "arm",
        f"above −{margin}",
        "above 0",
        f"within ±{margin}",
        "below 0",
        "95 % interval",
    )
    rows = []
    for arm in tested:
        found = arm.difference
        ends = NONE if found is None else interval(found.low95, found.high95)
        cells = [_test(arm, name) for name in TESTS]
        rows.append(
            [Cell(arm.name, code=True), *cells, Cell(ends, None if found is None else found.mean)]
        )
    return table("p-values of the tests, in brackets after Holm", heads, rows)


def _accuracy(band: Interval | None) -> Cell:
    if band is None:
        return Cell(NONE)
    ends = f"[{tables.percent(band.low)}, {tables.percent(band.high)}]"
    return Cell(f"{tables.percent(band.mean)} {_whole(ends)}", band.mean)


def _difference(arm: Arm) -> Cell:
    found = arm.difference
    if found is None:
        return Cell(NONE)
    return Cell(f"{points(found.mean)} {_whole(interval(found.low90, found.high90))}", found.mean)


def _retention(band: Interval | None) -> Cell:
    if band is None:
        return Cell(NONE)
    text = f"{100 * band.mean:.0f}\u00a0% "
    text += _whole(f"[{100 * band.low:.0f}, {100 * band.high:.0f}]")
    return Cell(text.replace("-", "−"), band.mean)


def _whole(text: str) -> str:
    """`text` that no line end parts: an interval goes to the next line as one."""
    return text.replace(" ", "\u00a0")


def _ratio(value: float | None) -> Cell:
    return Cell(NONE) if value is None else Cell(f"{value:.2f}\u00a0×", value)


def _memory(value: float | None) -> str:
    """Bytes with a decimal where there are few: moments of an adapter are less than a MiB."""
    if value is None or value >= 10 * 2**20:
        return tables.memory(value)
    return f"{value / 2**20:.2f} MiB" if value else "0"


def _step(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds:.3g} s"


def _rate(arm: Arm) -> Cell:
    if arm.learning_rate is None:
        return Cell(NONE)
    text = rate_text(arm.learning_rate)
    return Cell(text + (EDGE if arm.rate_at_edge else ""), arm.learning_rate)


def _seeds(analysis: Analysis, arm: Arm) -> Cell:
    done = len(arm.by_seed)
    missing = len(analysis.seeds) - done
    return Cell(f"{done}, {missing} failed" if arm.failed and missing > 0 else f"{done}", done)


def _test(arm: Arm, name: str) -> Cell:
    found = (arm.tests or {}).get(name)
    if found is None or found.p is None:
        return Cell(NONE)
    text = _p(found.p) + ("" if found.holm is None else f" ({_p(found.holm)})")
    return Cell(f"{text} ✓" if found.holds else text, found.p)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
