"""What a study found, in words, from its numbers: a sentence an arm, a conclusion, notes.

`report/verdict.txt` has the words, made of the mappings of analysis.json. They keep to what was
tested: "not worse by more than the margin", never "the same"; an arm that is not worse and yet
clearly below the control is said to be both; nothing that was not shown is said to be absent.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from modicum.report.words import environment, on_one_line
from modicum.study.cells import COUNTED
from modicum.study.design import Study
from modicum.study.inference import ALPHA

Values = Mapping[str, Any]


def sentence(arm: Values, study: Values) -> str:
    """What one arm showed, with what it cost."""
    return "".join(said("sentence", arm, study))


def conclusion(study: Values) -> str:
    """One to three sentences over all arms: which match, which lose, what stays open."""
    return "".join(said("conclusion", study))


def notes(study: Values, design: Study | None = None) -> list[str]:
    """What a reader must know before believing the verdicts, and what the `design` owns up to."""
    found = said("notes", study)
    if design is not None:
        unit = design.budget.unit
        found += said("of_design", study["arms"], design, COUNTED.get(unit, unit))
    return found


def said(name: str, *values: Any) -> list[str]:
    """The paragraphs of one of the texts, made of what it speaks of."""
    paragraphs = getattr(_texts(), name)(*values).split("\n---\n")
    return [text for paragraph in paragraphs if (text := on_one_line(paragraph))]


@cache
def _texts() -> Any:
    made = environment(
        judged=lambda arms, *verdicts: [arm for arm in arms if arm["verdict"] in verdicts],
        clear=lambda study: bool(study["control_gain"]) and study["control_gain"]["low"] > 0,
        single=lambda study: max(len(arm["by_seed"]) for arm in study["arms"]) == 1,
        share_of=lambda share: f"{100 * share:.{1 if share >= 0.001 else 3}f} %",
        **{"signed": _signed, "span": _span, "size": _size},
    )
    return made.get_template("verdict.txt", globals={"alpha": ALPHA}).module


def _signed(value: float, unit: str = " points") -> str:
    """Points with their sign; a value that rounds to 0 has none."""
    text = f"{100 * value:+.1f}"
    return f"{'0.0' if float(text) == 0 else text}{unit}"


def _span(found: Values, level: int | str = "") -> str:
    """The limits of an interval, those at a `level` where there are several."""
    return f"{_signed(found[f'low{level}'], '')} to {_signed(found[f'high{level}'], '')}"


def _size(value: float) -> str:
    """A number of points without a sign, and without a needless decimal."""
    text = f"{100 * value:.1f}".removesuffix(".0")
    return f"{text} point{'' if text == '1' else 's'}"
