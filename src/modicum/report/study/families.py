"""The families of arms: beyond six lines colour cannot name an arm, but it can name a kind.

The family comes from the names in the update's expression. The control is ink, placebos are
muted; a marker goes with every colour, so that colour is never alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modicum.report.style import INK, MARKERS, MUTED, SERIES
from modicum.results import Analysis, ArmResult

# The names of updates by kind, as the package modicum.updates has them (it needs torch).
ADAPTERS = (
    "lora|rslora|loraplus|lorafa|dora|pissa|olora|adalora|loraxs|vera|miss|ia3|lntuning|oft"
    "|shira|tinylora"
)
SCHEDULES = "lisa|badam|badam_ratio|autofreeze|slimfit|rgn|snr|sparse"
OPTIMIZERS = "sgd|galore|apollo|apollo_mini"
LAYERS = "first|last|middle|layers|every|surgical"
PARTS = "parts|bitfit"


@dataclass(frozen=True)
class Family:
    """A kind of arm: its name, the number of its colour (None: not a series) and its look."""

    name: str
    series: int | None
    colour: str
    marker: str


def _series(name: str, number: int) -> Family:
    return Family(name, number, SERIES[number], MARKERS[number])


CONTROL = Family("control", None, INK, "*")
PLACEBO = Family("placebo", None, MUTED, "X")
OTHER = _series("other settings", 5)
# An expression with names of several kinds belongs to the first of these.
KINDS = (
    (ADAPTERS, _series("adapters", 1)),
    (SCHEDULES, _series("schedules, masks", 3)),
    (OPTIMIZERS, _series("optimizers", 4)),
    (LAYERS, _series("layers", 0)),
    (PARTS, _series("parts of layers", 2)),
)


def family(analysis: Analysis, arm: ArmResult) -> Family:
    """The family of an arm of a study."""
    if arm.name == analysis.control:
        return CONTROL
    if arm.placebo:
        return PLACEBO
    update = str(arm.settings.get("update", ""))
    # A name is not followed by "=": in `lisa(layers=1)` the layers are a setting.
    kinds = (found for names, found in KINDS if re.search(rf"\b({names})\b(?!\s*=)", update))
    return next(kinds, OTHER)


def present(analysis: Analysis) -> list[Family]:
    """The families of a study's arms, the control first."""
    found = {family(analysis, arm) for arm in analysis.arms}
    order = [CONTROL, *(kind for _, kind in KINDS), OTHER, PLACEBO]
    return [kind for kind in order if kind in found]


def ranked(analysis: Analysis) -> list[ArmResult]:
    """The arms from the largest difference to the smallest; the control stands at 0.

    Placebos come after all others, arms without a difference (failed ones) last.
    """

    def place(arm: ArmResult) -> tuple[bool, bool, float]:
        control = arm.name == analysis.control
        gap = 0.0 if control else arm.difference.mean if arm.difference else None
        return gap is None, arm.placebo, -(gap or 0.0)

    return sorted(analysis.arms, key=place)
