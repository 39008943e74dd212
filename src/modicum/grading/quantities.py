"""Exact values of short texts: plain numbers, with or without a unit.

Units are not converted. The text is not trusted: it is matched by small anchored patterns, and
lengths, digits and exponents are bounded. Only ASCII digits count as digits."""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from modicum.grading import WORDS, firsts, patterns
from modicum.grading.spelling import TEXT, clean

MAX_TEXT = 1100  # characters of a number with its unit
MAX_DIGITS = 1000  # digits of a number, written out
MIN_DIGITS = 6  # significant digits of a decimal that may stand for an endless one

PREFIX, SCALE, GROUPS, TRAILING = patterns("prefix scale groups trailing")
DEGREE, SQUARED, WORD = patterns("degree squared unit")
# Tried in this order: the longer forms begin like the shorter ones.
FORMS = patterns("mixed fraction scientific raised repeating dotted plain")
MIXED, FRACTION, SCIENTIFIC, RAISED, REPEATING, DOTTED, PLAIN = FORMS
CURRENCY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}

UNIT_NAMES = firsts("units")
UNITS = frozenset(UNIT_NAMES.values())
UNIT_SYNONYMS = {"unit": "", "unit2": "", "unit3": "", "mph": "mi/h", "kph": "km/h"}
POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
SHORT_UNITS = frozenset(WORDS["short_units"].split())
NOT_UNITS = frozenset(WORDS["no_units"].split())


class Quantity(NamedTuple):
    """An exact value, its unit ("" for none, "%" for percent), and its digits as written."""

    value: Fraction
    unit: str
    digits: str


def number(text: str) -> Fraction | None:
    """The exact value of a plain number (docs/grading.md), its unit dropped; None if it is none."""
    found = quantity(clean(text)) if len(text) <= MAX_TEXT else None
    return None if found is None else found.value


@lru_cache(maxsize=1024)
def quantity(text: str) -> Quantity | None:
    """The number with its unit that the whole of `text` (cleaned) is, or None."""
    if len(text) > MAX_TEXT or not any(c in text for c in "0123456789"):
        return None
    text = GROUPS.sub(",", text)
    if (prefix := PREFIX.match(text)) is None or (prefix[1] and prefix[3]):
        return None
    core = text[prefix.end() :]
    if (found := _value(core)) is None:
        return None
    value, end = found
    digits, rest = core[:end], core[end:]
    if scale := SCALE.match(rest):
        value, digits = value * WORDS["scales"][scale[2]], ""
        rest = (scale[1] or " ") + rest[scale.end() :]
    unit = _unit(rest)
    currency = CURRENCY.get(prefix[2].removeprefix("\\"), "")
    if unit is None or (unit and currency and unit != currency):
        return None
    sign = -1 if "-" in (prefix[1], prefix[3]) else 1
    return Quantity(sign * value, unit or currency, digits)


def _value(text: str) -> tuple[Fraction, int] | None:
    """The value of the number that `text` begins with, and where that number ends."""
    for form in FORMS:
        if match := form.match(text):
            found = _read(form, [group for group in match.groups() if group is not None])
            return None if found is None else (found, match.end())
    return None


def _read(form: re.Pattern[str], groups: Sequence[str]) -> Fraction | None:
    """The value of what matched; None if it has none, or too many digits."""
    if form in (REPEATING, DOTTED):
        whole, start, block = groups
        endless = Fraction(int(block), 10 ** len(start) * (10 ** len(block) - 1))
        return _decimal(f"{whole or 0}.{start or 0}") + endless
    if form in (MIXED, FRACTION):
        *wholes, top, bottom = map(_decimal, groups)
        # 3\frac{-1}{2} and 3\frac{7}{2} are products, if anything.
        fits = bottom and (not wholes or 0 <= top / bottom < 1)
        return sum(wholes, top / bottom) if fits else None
    if len(groups[0]) > MAX_DIGITS:
        return None
    if form is PLAIN:
        return _decimal(groups[0])
    factor, base = (groups[0], 10) if form is SCIENTIFIC else ("1", int(groups[0]))
    exponent = int(groups[1].replace(" ", ""))
    if len(str(base)) * abs(exponent) > 2 * MAX_DIGITS or (base == 0 and exponent <= 0):
        return None
    return _decimal(factor) * Fraction(base) ** exponent


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[,\s]", "", text).removesuffix("."))


def _unit(rest: str) -> str | None:
    r"""The unit that `rest` spells, "" for none, None if it is something else."""
    rest = DEGREE.sub(" degrees ", SQUARED.sub(lambda m: m[1] + "^" + "32"[bool(m[2])], rest))
    marked, spaced = TEXT.match(rest.lstrip()), rest[:1].isspace()
    words = TEXT.sub(r" \1", rest).replace("%", " percent ").split()
    if not words or len(words) > 6:
        return None if words else ""
    first = words[0].strip(".,;").partition("^")[0].partition("/")[0]
    alone = marked or first in SHORT_UNITS or (spaced and len(first) > 2)
    return unit_name(words) if alone and all(map(_may_be_unit, words)) else None


def unit_name(words: Sequence[str]) -> str:
    """One spelling for the unit that `words` are: cm2 for square centimeters, % for percent."""
    named: list[str] = []
    power = ""
    for word in words:
        base, _, raised = word.strip(".,;").replace("{", "").replace("}", "").partition("^")
        if base.lower() in POWERS:
            power = POWERS[base.lower()]
            continue
        named.append("/".join(map(_singular, base.split("/"))) + (raised or power))
        power = ""
    text = " ".join(named).replace(" per ", "/")
    return UNIT_SYNONYMS.get(text, text)


def _may_be_unit(word: str) -> bool:
    """Whether a word can be a unit: no number word, and no variable such as x."""
    if (match := WORD.fullmatch(word.strip(".,;"))) is None:
        return False
    letter = len(match[1]) == 1 and match[1].islower()
    return match[1] in UNIT_NAMES if letter else match[1].lower() not in NOT_UNITS


def _singular(word: str) -> str:
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        if name in UNIT_NAMES:
            return UNIT_NAMES[name]
    return word.lower().removesuffix("s") if len(word) > 2 else word


def split_unit(text: str) -> tuple[str, str]:
    r"""A formula and the unit behind it, "" for none: 2\pi and cm2 of 2\pi\text{ cm}^2."""
    text = DEGREE.sub(r" \\text{degrees}", text) if DEGREE.search(text, len(text) - 9) else text
    if (match := TRAILING.fullmatch(text)) is None:
        return text, ""
    if not (words := (match[2] or match[4] or "").split()) or not all(map(_may_be_unit, words)):
        return text, ""
    # Without \text{}, m may be a variable.
    if match[4] and not all(len(w) > 1 and (_singular(w) in UNITS or w in POWERS) for w in words):
        return text, ""
    if match[3]:
        words[-1] += "^" + match[3]
    return match[1], unit_name(words)


def same_quantity(gold: str, answer: str) -> bool | None:
    """The verdict on two numbers with units; None if one of them is no number."""
    g, a = quantity(gold), quantity(answer)
    if g is None or a is None:
        return None
    if g.unit and a.unit:
        return g.unit == a.unit and g.value == a.value
    hundredths = [q.value / 100 if q.unit == "%" else q.value for q in (g, a)]
    if hundredths[0] == hundredths[1]:
        return True  # 50% is 0.5; by the next line, where a unit may be missing, it is 50 too
    # An endless decimal, whose denominator divides no power of ten, may be cut or rounded.
    below = g.value.denominator
    endless = pow(10, below.bit_length(), below) > 0
    return g.value == a.value or (endless and shows(g.value, a.value, a.digits))


def shows(gold: Fraction, value: Fraction, digits: str) -> bool:
    """Whether `digits` is `gold`, rounded or cut after six significant digits or more."""
    _, point, places = digits.partition(".")
    shown = digits.replace(".", "").replace(",", "").lstrip("0")
    if not point or not shown.isdigit() or len(shown) < MIN_DIGITS:
        return False
    off = (abs(gold) - abs(value)) * 10 ** len(places)
    return gold * value > 0 and (abs(off) <= Fraction(1, 2) or 0 <= off < 1)
