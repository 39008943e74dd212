"""Every metric that a step logs, once, in logged.txt: its key, title, units and explanation.

Reports take titles from there, and a test holds the table in docs/metrics.md to it. `reward/TERM`
stands for every term of a reward, `user/NAME` for what functions log."""

from pathlib import Path
from typing import NamedTuple

TERM = "reward/TERM"


class Metric(NamedTuple):
    """A line of logged.txt; `shown` and `short` are empty where no figure has it."""

    key: str
    title: str
    unit: str
    shown: str
    short: str
    text: str

    @property
    def factor(self) -> float:
        """From the logged unit to the shown one."""
        return 100.0 if self.shown.endswith("(%)") else 1.0

    @property
    def words(self) -> str:
        """The title within a sentence; KL stays KL."""
        return self.title if self.title[1].isupper() else self.title[0].lower() + self.title[1:]


LINES = Path(__file__).with_name("logged.txt").read_text(encoding="utf-8").splitlines()
METRICS = {line.partition(" ")[0]: Metric(*map(str.strip, line.split(" | "))) for line in LINES[1:]}


def metric_of(key: str) -> Metric:
    """The metric of a key, also of a term of a reward."""
    name, term = key.removeprefix("reward/"), METRICS[TERM]
    return METRICS.get(key, Metric(key, f"{term.title} {name}", term.unit, term.shown, name, ""))
