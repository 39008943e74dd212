"""The tables of a study's report: its arms, what they cost, the tests behind the verdicts."""

from collections.abc import Callable, Mapping
from typing import Any

from modicum.report import words as n
from modicum.report.document import Table, TableCell, table
from modicum.report.study.families import family, ranked
from modicum.results import Analysis, ArmCost, ArmResult
from modicum.stats import Interval

TESTS = ("noninferior", "superior", "equivalent", "inferior")


def arms(analysis: Analysis) -> Table:
    """A row for each arm: verdict, share, accuracy, difference, retention, cost, rate, seeds."""
    heads = ("arm", "verdict", "trained", f"{analysis.primary} (%), 95 %", "difference, 90 %")
    heads += ("retention, 95 %", "below the base (%), 95 %", "time", "memory", "rate", "seeds")
    rows = []
    for arm in ranked(analysis):
        cost, rate, done = arm.cost, arm.learning_rate, len(arm.by_seed)
        failed = len(analysis.seeds) - done if arm.failed else 0
        rows.append(
            [
                name(analysis, arm),
                TableCell(arm.verdict),
                _cell(cost.share, n.share),
                _cell(arm.accuracy, _band),
                _cell(
                    arm.difference,
                    lambda d: f"{n.points(d.mean)} {_whole(n.interval(d.low90, d.high90))}",
                ),
                _cell(arm.retention, lambda found: _band(found, 0, "\u00a0%")),
                _cell(arm.below_base, lambda found: _band(found, 0)),
                _cell(cost.time_ratio, _times),
                _cell(cost.memory_ratio, _times),
                _cell(rate, lambda r, edge=arm.rate_at_edge: n.rate(r) + " at\u00a0edge" * edge),
                TableCell(f"{done}" + (f", {failed} failed" if failed > 0 else ""), done),
            ]
        )
    return table("The arms, the best first", heads, rows, wrap=True)


COSTS: Mapping[str, tuple[Callable[[ArmCost], float | None], Callable[[Any], str]]] = {
    "trained parameters": (lambda cost: cost.parameters, n.count),
    "in training at once": (lambda cost: cost.active_parameters_mean, n.count),
    "optimizer": (lambda cost: cost.optimizer_bytes, lambda value: _memory(value)),
    "peak memory": (lambda cost: cost.peak_memory_bytes, n.memory),
    "above the start": (lambda cost: cost.memory_bytes, n.memory),
    "seconds": (lambda cost: cost.seconds, n.decimal),
    "a step": (lambda cost: cost.step_seconds, lambda value: f"{value:.3g} s"),
    "steps": (lambda cost: cost.steps, n.decimal),
    "tokens": (lambda cost: cost.generated_tokens, n.short),
    "FLOPs": (lambda cost: cost.flops_ratio, lambda value: _times(value)),
    "tuning runs": (lambda cost: cost.tuning_runs, n.count),
}


def costs(analysis: Analysis) -> Table:
    """What every arm used, as measured: means over its seeds."""
    rows = [
        [name(analysis, arm), *(_cell(value(arm.cost), text) for value, text in COSTS.values())]
        for arm in ranked(analysis)
    ]
    return table("What the arms cost", ("arm", *COSTS), rows, plain=True)


def tests(analysis: Analysis) -> Table | None:
    """The p-values behind the verdicts, as they are and after Holm; None without any."""
    margin = f"{100 * analysis.margin:g}"
    heads = ("arm", f"above −{margin}", "above 0", f"within ±{margin}", "below 0", "95 % interval")
    rows = [
        [
            TableCell(arm.name, code=True),
            *(_test(arm, test) for test in TESTS),
            _cell(arm.difference, lambda d: n.interval(d.low95, d.high95)),
        ]
        for arm in ranked(analysis)
        if arm.tests
    ]
    title = "p-values of the tests, in brackets after Holm"
    return table(title, heads, rows, plain=True) if rows else None


def name(analysis: Analysis, arm: ArmResult) -> TableCell:
    """The name of an arm, with the colour of its family."""
    return TableCell(arm.name, series=family(analysis, arm).series, code=True)


def _cell(found: Any, text: Callable[[Any], str]) -> TableCell:
    return (
        TableCell(n.NONE)
        if found is None
        else TableCell(text(found), getattr(found, "mean", found))
    )


def _band(found: Interval, digits: int = 1, unit: str = "") -> str:
    ends = _whole(n.interval(found.low, found.high, lambda end: n.percent(end, digits)))
    return f"{n.percent(found.mean, digits)}{unit} {ends}".replace("-", "−")


def _whole(text: str) -> str:
    """`text` that no line end parts: an interval goes to the next line as one."""
    return text.replace(" ", "\u00a0")


def _times(value: float) -> str:
    return f"{value:.2f}\u00a0×"


def _memory(value: float) -> str:
    """Bytes with a decimal where there are few: moments of an adapter are less than a MiB."""
    if value >= 10 * 2**20:
        return n.memory(value)
    return f"{value / 2**20:.2f} MiB" if value else "0"


def _test(arm: ArmResult, name: str) -> TableCell:
    found = (arm.tests or {}).get(name)
    if found is None or found.p is None:
        return TableCell(n.NONE)
    text = _p(found.p) + ("" if found.holm is None else f" ({_p(found.holm)})")
    return TableCell(f"{text} ✓" if found.holds else text, found.p)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
