"""The tables of a study's report: its arms, what they cost, the tests behind the verdicts."""

from collections.abc import Callable, Mapping
from typing import Any

from modicum.report import words as n
from modicum.report.document import Table, TableCell, table
from modicum.report.study.families import family, ranked
from modicum.results import Analysis, ArmResult
from modicum.stats import Difference, Interval

Columns = Mapping[str, Callable[[ArmResult], TableCell]]
TESTS = ("noninferior", "superior", "equivalent", "inferior")


def arms(analysis: Analysis) -> Table:
    """A row for each arm: verdict, share, accuracy, difference, retention, cost, rate, seeds."""

    def seeds(arm: ArmResult) -> TableCell:
        done = len(arm.by_seed)
        failed = len(analysis.seeds) - done if arm.failed else 0
        return TableCell(f"{done}" + (f", {failed} failed" if failed > 0 else ""), done)

    columns: Columns = {
        "verdict": lambda arm: TableCell(arm.verdict),
        "trained": lambda arm: _cell(arm.cost.share, n.share),
        f"{analysis.primary} (%), 95 %": lambda arm: _cell(arm.accuracy, _band),
        "difference, 90 %": lambda arm: _cell(arm.difference, _gap),
        "retention, 95 %": lambda arm: _cell(arm.retention, lambda b: _band(b, 0, "\u00a0%")),
        "below the base (%), 95 %": lambda arm: _cell(arm.below_base, lambda b: _band(b, 0)),
        "time": lambda arm: _cell(arm.cost.time_ratio, _times),
        "memory": lambda arm: _cell(arm.cost.memory_ratio, _times),
        "rate": lambda arm: _cell(
            arm.learning_rate, lambda r: n.rate(r) + " at\u00a0edge" * arm.rate_at_edge
        ),
        "seeds": seeds,
    }
    return _of_arms("The arms, the best first", analysis, columns, wrap=True)


def costs(analysis: Analysis) -> Table:
    """What every arm used, as measured: means over its seeds."""
    columns: Columns = {
        "trained parameters": lambda arm: _cell(arm.cost.parameters, n.count),
        "in training at once": lambda arm: _cell(arm.cost.active_parameters_mean, n.count),
        "optimizer": lambda arm: _cell(arm.cost.optimizer_bytes, _memory),
        "peak memory": lambda arm: _cell(arm.cost.peak_memory_bytes, n.memory),
        "above the start": lambda arm: _cell(arm.cost.memory_bytes, n.memory),
        "seconds": lambda arm: _cell(arm.cost.seconds, n.decimal),
        "a step": lambda arm: _cell(arm.cost.step_seconds, lambda value: f"{value:.3g} s"),
        "steps": lambda arm: _cell(arm.cost.steps, n.decimal),
        "tokens": lambda arm: _cell(arm.cost.generated_tokens, n.short),
        "FLOPs": lambda arm: _cell(arm.cost.flops_ratio, _times),
        "tuning runs": lambda arm: _cell(arm.cost.tuning_runs, n.count),
    }
    return _of_arms("What the arms cost", analysis, columns, plain=True)


def _of_arms(title: str, analysis: Analysis, columns: Columns, **options: bool) -> Table:
    texts = [[name(analysis, a), *(of(a) for of in columns.values())] for a in ranked(analysis)]
    return table(title, ("arm", *columns), texts, **options)


def tests(analysis: Analysis) -> Table | None:
    """The p-values behind the verdicts, as they are and after Holm; None without any."""
    margin = f"{100 * analysis.margin:g}"
    heads = ("arm", f"above −{margin}", "above 0", f"within ±{margin}", "below 0", "95 % interval")
    rows = []
    for arm in (arm for arm in ranked(analysis) if arm.tests):
        band = _cell(arm.difference, lambda d: n.interval(d.low95, d.high95))
        found = (_test(arm, test) for test in TESTS)
        rows.append([TableCell(arm.name, code=True), *found, band])
    title = "p-values of the tests, in brackets after Holm"
    return table(title, heads, rows, plain=True) if rows else None


def name(analysis: Analysis, arm: ArmResult) -> TableCell:
    """The name of an arm, with the colour of its family."""
    return TableCell(arm.name, series=family(analysis, arm).series, code=True)


def _cell(found: Any, text: Callable[[Any], str]) -> TableCell:
    if found is None:
        return TableCell(n.NONE)
    return TableCell(text(found), getattr(found, "mean", found))


# No line end parts an interval: it goes to the next line as one.
def _band(found: Interval, digits: int = 1, unit: str = "") -> str:
    ends = n.interval(found.low, found.high, lambda end: n.percent(end, digits))
    ends = ends.replace(" ", "\u00a0")
    return f"{n.percent(found.mean, digits)}{unit} {ends}".replace("-", "−")


def _gap(found: Difference) -> str:
    ends = n.interval(found.low90, found.high90).replace(" ", "\u00a0")
    return f"{n.points(found.mean)} {ends}"


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
