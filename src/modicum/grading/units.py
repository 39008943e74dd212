r"""Units of answers: which words may be one, and one spelling for each.

Nothing is converted: a metre and a hundred centimetres are two different answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from modicum.grading import WORDS

DEGREE = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)", re.ASCII)
SQUARED = re.compile(r"([a-z]) (?:(squared)|cubed)(?![a-z])")
WORD = re.compile(r"([A-Za-z]+(?:/[A-Za-z]+)?)(?:\^\{?([23])\}?)?", re.ASCII)
UNIT_NAMES = {
    word: line.split()[0]
    for line in WORDS["units"].replace("\n", ";").split(";")
    for word in line.split()
}
UNITS = frozenset(UNIT_NAMES.values())
UNIT_SYNONYMS = {"unit": "", "unit2": "", "unit3": "", "mph": "mi/h", "kph": "km/h"}
POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
SHORT_UNITS = frozenset(WORDS["short_units"].split())
TRAILING = re.compile(
    r"(.*\S)\s*(?:\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\}\s*(?:\^\s*\{?([23])\}?)?"
    r"|\s((?:[A-Za-z/]+(?:\^[23])?\s?){1,3}))",
    re.ASCII,
)
NOT_UNITS = frozenset(WORDS["no_units"].split())


def unit_name(words: Sequence[str]) -> str:
    """One spelling for the unit that `words` are: cm2 for square centimeters, % for percent."""
    named: list[str] = []
    power = ""
    for word in words:
        base, _, raised = word.strip(".,;").replace("{", "").replace("}", "").partition("^")
        if base.lower() in POWERS:
            power = POWERS[base.lower()]
            continue
        parts = [_singular(part) for part in base.split("/")]
        named.append("/".join(parts) + (raised or power))
        power = ""
    text = " ".join(named).replace(" per ", "/")
    return UNIT_SYNONYMS.get(text, text)


def may_be_unit(word: str) -> bool:
    """Whether a word can be a unit: no number word, and no variable such as x."""
    if len(word) == 1 and word.islower():
        return word in UNIT_NAMES
    return word.lower() not in NOT_UNITS


def _singular(word: str) -> str:
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        if name in UNIT_NAMES:
            return UNIT_NAMES[name]
    return word.lower().removesuffix("s") if len(word) > 2 else word


def split_unit(text: str) -> tuple[str, str]:
    r"""A formula and the unit behind it, "" for none: 2\pi and cm2 of 2\pi\text{ cm}^2.

    Units are words in \text{} and known names of units.
    """
    text = DEGREE.sub(r" \\text{degrees}", text) if DEGREE.search(text, len(text) - 9) else text
    match = TRAILING.fullmatch(text)
    if match is None:
        return text, ""
    words = (match[2] or match[4] or "").split()
    plain = [WORD.fullmatch(word.strip(".,;")) for word in words]
    if not words or not all(m is not None and may_be_unit(m[1]) for m in plain):
        return text, ""
    # Without \text{}, m may be a variable.
    if match[4] and not all(len(w) > 1 and (_singular(w) in UNITS or w in POWERS) for w in words):
        return text, ""
    if match[3]:
        words[-1] += "^" + match[3]
    return match[1], unit_name(words)
