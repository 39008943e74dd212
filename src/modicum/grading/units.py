r"""Units of answers: which words may be one, and one spelling for each.

Nothing is converted: a metre and a hundred centimetres are two different answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

DEGREE = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)", re.ASCII)
SQUARED = re.compile(r"([a-z]) (?:(squared)|cubed)(?![a-z])")
WORD = re.compile(r"([A-Za-z]+(?:/[A-Za-z]+)?)(?:\^\{?([23])\}?)?", re.ASCII)
# One line a unit: its name, then other spellings (plurals with s are found by themselves).
_UNITS = """
mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre
nm nanometer nanometre; kW kilowatt; W watt; kJ kilojoule; J joule; N newton; Pa pascal; V volt
A ampere amp; K kelvin; Hz hertz; mol mole; tonne; acre; hectare ha; gal gallon; qt quart; pt pint
C celsius; F fahrenheit; month; ms millisecond; rpm; kph kmh kmph; ohm; person people
in inch inches; ft foot feet; yd yard; mi mile; mg milligram; g gram; kg kilogram; lb pound lbs
oz ounce; ml mL milliliter millilitre; l L liter litre; s sec second; min minute; h hr hour
degree deg; radian rad; dollar usd; cent; % percent percentage pct; day; week wk; year yr; mph; per
"""
UNIT_NAMES = {
    word: line.split()[0] for line in _UNITS.replace("\n", ";").split(";") for word in line.split()
}
UNITS = frozenset(UNIT_NAMES.values())
UNIT_SYNONYMS = {"unit": "", "unit2": "", "unit3": "", "mph": "mi/h", "kph": "km/h"}
POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
# Units that stand without \text{} or a space: any other short word may be a product.
_SHORT = "sq cu cm mm km kg mg ml mL ft in mi hr hrs yd oz lb lbs hz mph percent"
SHORT_UNITS = frozenset(_SHORT.split())
TRAILING = re.compile(
    r"(.*\S)\s*(?:\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\}\s*(?:\^\s*\{?([23])\}?)?"
    r"|\s((?:[A-Za-z/]+(?:\^[23])?\s?){1,3}))",
    re.ASCII,
)
# Words after a number that make it another number, or no number at all.
_NOT = (
    "and or to not but nor than more less least most plus minus times over point divided mod by"
    " base remainder squared cubed factorial dozen hundred half"
    " halves third thirds quarter quarters fifth fifths sixth sixths seventh sevenths eighth eighths"
    " ninth ninths tenth tenths hundreds hundredth hundredths thousands thousandth thousandths"
    " millions millionth millionths billions dozens score scores double triple twice choose modulo"
    " negative power below sqrt root pi inf infinity sin cos tan log ln exp if"
    " where when for is are was equals i e"
)
NOT_UNITS = frozenset(_NOT.split())


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
