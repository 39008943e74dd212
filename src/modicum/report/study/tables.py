"""The tables of a study's report: its arms, what they cost, the tests behind the verdicts."""

from collections.abc import Callable, Mapping
from typing import Any

from modicum.report import numbers as n
from modicum.report.document import Table, TableCell, table
from modicum.report.study.families import family, ranked
from modicum.results import Analysis, ArmCost, ArmResult
from modicum.stats import Interval

EDGE = " at\u00a0edge"
TESTS = ("noninferior", "superior", "equivalent", "inferior")


def arms(analysis: Analysis) -> Table:
    """A row for each arm: verdict, share, accuracy, difference, retention, cost, rate, seeds."""
    columns: Mapping[str, Callable[[ArmResult], TableCell | None]] = {
        "verdict": lambda arm: TableCell(arm.verdict),
        "trained": lambda arm: TableCell(n.share(arm.cost.share), arm.cost.share),
        f"{analysis.primary} (%), 95 %": lambda arm: _mean(
            arm.accuracy, lambda b: f"{n.percent(b.mean)} {_whole(n.limits(b.low, b.high))}"
        ),
        "difference, 90 %": lambda arm: _mean(
            arm.difference, lambda d: f"{n.points(d.mean)} {_whole(n.interval(d.low90, d.high90))}"
        ),
        "retention, 95 %": lambda arm: _mean(arm.retention, _retained),
        "time": lambda arm: _ratio(arm.cost.time_ratio),
        "memory": lambda arm: _ratio(arm.cost.memory_ratio),
        "rate": _rate,
        "seeds": lambda arm: _seeds(analysis, arm),
    }
    rows = [
        [name(analysis, arm), *(cell(arm) or n.NONE for cell in columns.values())]
        for arm in ranked(analysis)
    ]
    return table("The arms, the best first", ("arm", *columns), rows, wrap=True)


COSTS: Mapping[str, tuple[Callable[[ArmCost], float | None], Callable[[float | None], str]]] = {
    "trained parameters": (lambda cost: cost.parameters, n.count),
    "in training at once": (lambda cost: cost.active_parameters_mean, n.count),
    "optimizer": (lambda cost: cost.optimizer_bytes, lambda value: _memory(value)),
    "peak memory": (lambda cost: cost.peak_memory_bytes, n.memory),
    "above the start": (lambda cost: cost.memory_bytes, n.memory),
    "seconds": (lambda cost: cost.seconds, n.decimal),
    "a step": (lambda cost: cost.step_seconds, lambda v: n.NONE if v is None else f"{v:.3g} s"),
    "steps": (lambda cost: cost.steps, n.decimal),
    "tokens": (lambda cost: cost.generated_tokens, n.short),
    "FLOPs": (lambda cost: cost.flops_ratio, lambda value: _ratio(value).text),
    "tuning runs": (lambda cost: cost.tuning_runs, n.count),
}


def costs(analysis: Analysis) -> Table:
    """What every arm used, as measured: means over its seeds."""
    rows = []
    for arm in ranked(analysis):
        found = [(value(arm.cost), text) for value, text in COSTS.values()]
        cells = [TableCell(text(value), value) for value, text in found]
        rows.append([name(analysis, arm), *cells])
    return table("What the arms cost", ("arm", *COSTS), rows, plain=True)


def tests(analysis: Analysis) -> Table | None:
    """The p-values behind the verdicts, as they are and after Holm; None without any."""
    tested = [arm for arm in ranked(analysis) if arm.tests]
    if not tested:
        return None
    margin = f"{100 * analysis.margin:g}"
    claims = f"above −{margin}", "above 0", f"within ±{margin}", "below 0"
    rows = []
    for arm in tested:
        found = arm.difference
        ends = n.NONE if found is None else n.interval(found.low95, found.high95)
        cells = [_test(arm, name) for name in TESTS]
        last = TableCell(ends, None if found is None else found.mean)
        rows.append([TableCell(arm.name, code=True), *cells, last])
    return table(
        "p-values of the tests, in brackets after Holm",
        ("arm", *claims, "95 % interval"),
        rows,
        plain=True,
    )


def name(analysis: Analysis, arm: ArmResult) -> TableCell:
    """The name of an arm, with the colour of its family."""
    return TableCell(arm.name, series=family(analysis, arm).series, code=True)


def _mean(found: Any, text: Callable[[Any], str]) -> TableCell | None:
    """A mean with its interval, where there is one."""
    return None if found is None else TableCell(text(found), found.mean)


def _retained(band: Interval) -> str:
    ends = _whole(f"[{n.percent(band.low, 0)}, {n.percent(band.high, 0)}]")
    return f"{n.percent(band.mean, 0)}\u00a0% {ends}".replace("-", "−")


def _whole(text: str) -> str:
    """`text` that no line end parts: an interval goes to the next line as one."""
    return text.replace(" ", "\u00a0")


def _ratio(value: float | None) -> TableCell:
    return TableCell(n.NONE) if value is None else TableCell(f"{value:.2f}\u00a0×", value)


def _memory(value: float | None) -> str:
    """Bytes with a decimal where there are few: moments of an adapter are less than a MiB."""
    if value is None or value >= 10 * 2**20:
        return n.memory(value)
    return f"{value / 2**20:.2f} MiB" if value else "0"


def _rate(arm: ArmResult) -> TableCell | None:
    if arm.learning_rate is None:
        return None
    text = n.rate(arm.learning_rate)
    return TableCell(text + (EDGE if arm.rate_at_edge else ""), arm.learning_rate)


def _seeds(analysis: Analysis, arm: ArmResult) -> TableCell:
    done = len(arm.by_seed)
    missing = len(analysis.seeds) - done
    return TableCell(f"{done}, {missing} failed" if arm.failed and missing > 0 else f"{done}", done)


def _test(arm: ArmResult, name: str) -> TableCell:
    found = (arm.tests or {}).get(name)
    if found is None or found.p is None:
        return TableCell(n.NONE)
    text = _p(found.p) + ("" if found.holm is None else f" ({_p(found.holm)})")
    return TableCell(f"{text} ✓" if found.holds else text, found.p)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
