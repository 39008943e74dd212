"""The families of arms, kinds of their updates, which have the colours and a marker each."""

from typing import NamedTuple

from modicum.report.style import INK, MARKERS, MUTED, SERIES, Look
from modicum.results import Analysis, ArmResult


class Family(NamedTuple):
    """A kind of arm: its name, the number of its colour (None: not a series) and its look."""

    name: str
    series: int | None
    colour: str
    marker: str

    @property
    def look(self) -> Look:
        """For a legend."""
        return self.name, self.colour, self.marker, ""


CONTROL = Family("control", None, INK, "*")
NUMBERS = {"adapters": 1, "schedules, masks": 3, "optimizers": 4, "layers": 0, "parts of layers": 2}
OTHER = Family("other settings", 5, SERIES[5], MARKERS[5])
KINDS = {"control": CONTROL}
KINDS |= {name: Family(name, n, SERIES[n], MARKERS[n]) for name, n in NUMBERS.items()}
KINDS |= {"other": OTHER, "placebo": Family("placebo", None, MUTED, "X")}


def family(analysis: Analysis, arm: ArmResult) -> Family:
    """The family of an arm of a study."""
    name = "control" if arm.name == analysis.control else "placebo" if arm.placebo else arm.kind
    return KINDS.get(name, OTHER)


def present(analysis: Analysis) -> list[Family]:
    """The families of a study's arms, the control first."""
    found = {family(analysis, arm) for arm in analysis.arms}
    return [kind for kind in KINDS.values() if kind in found]


def ranked(analysis: Analysis) -> list[ArmResult]:
    """The arms by difference (the control's is 0), the largest first; then placebos, failed ones."""

    def place(arm: ArmResult) -> tuple[bool, bool, float]:
        control = arm.name == analysis.control
        gap = 0.0 if control else arm.difference.mean if arm.difference else None
        return gap is None, arm.placebo, -(gap or 0.0)

    return sorted(analysis.arms, key=place)
