r"""Do two answers say the same: by exact value, by text, by parts, and by algebra if it is given.

`same` stops at the first step that decides. It takes formulas apart (lists, sets, tuples,
intervals, unions, matrices, inequalities as intervals) and hands single formulas to
`algebra`, a function of (gold, answer), or leaves them unequal without one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from modicum.grading import intervals
from modicum.grading.quantities import TEXT, quantity, same_quantity
from modicum.grading.units import split_unit

Algebra = Callable[[str, str], bool]
Parts = tuple[str, list[str]]

OPENING, CLOSING = "([{⟨‹", ")]}⟩›"
BRACKETS = {r"\{": "⟨", r"\}": "⟩", r"\langle": "‹", r"\rangle": "›"}
MAX_LOOSE = 12  # members of a list that are paired by trying

AND = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=\s)(?:and|or)(?=\s)")
JOINED = re.compile(r"\b(and|or)\b")
VARIABLE = re.compile(
    r"([A-Za-z]|[A-Z]{2}|[A-Za-z]{3,}|\\text\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]_\{?\w\}?|[A-Za-z](?:\^\{-1\})?\([A-Za-z]\)"
    r"|\([A-Za-z](?:,\s*[A-Za-z])+\))\s*(?:=|\\in(?![A-Za-z]))([^=]+)"
)
MATRIX = re.compile(
    r"\\begin\{([bBp]?matrix|array)\}(?:\{[lcr| ]*\})?(.*?)(?:\\\\\s*)?\\end\{\1\}", re.DOTALL
)
CHOICE = re.compile(
    r"(?:(?i:option|choice)\s+)?(?:\(([A-J])\)|([A-J])(?:[).:]|$))(?:(?:\\ |\s)+(?![-+*/^=<>])(.*)|$)"
)
TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:([ap])\.?\s?m\.?)?", re.I | re.ASCII)
TEXT_KEY = (
    (re.compile(r"(?<!\\)\\(?:[,;:! ]|q?quad(?![A-Za-z]))|\s+|~"), ""),
    (re.compile(r"\\([gln]e)q(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\(begin|end)\{[bBp]?matrix\}"), r"\\\1{pmatrix}"),
    (re.compile(r"([_^])\{([0-9]+)\}"), r"\1\2"),
    (re.compile(r"\{([0-9A-Za-z])\}"), r"\1"),
    (re.compile(r"^\(([A-Za-z])\)$"), r"\1"),
    (re.compile(r"^\(([0-9A-Z]+)\)_"), r"\1_"),
    (re.compile(r"\+\\infty"), r"\\infty"),
)
WORDS = re.compile(r"[A-Za-z]{2,}")
# One spelling for what is written in several ways; keys have no spaces.
SYNONYMS = {
    other: first
    for first, *others in (
        (r"\emptyset", r"\varnothing", "∅", r"\{\}", "emptyset", "theemptyset"),
        (r"(-\infty,\infty)", r"\mathbbR", "ℝ", "allrealnumbers", "allreals"),
        (r"\infty", "infinity"),
        ("doesnotexist", "dne"),
        ("nosolution", "nosolutions"),
    )
    for other in others
}


def same(gold: str, answer: str, depth: int = 2, algebra: Algebra | None = None) -> bool:
    """Whether two cleaned answers are the same, taken apart `depth` times at most."""
    by_value = same_quantity(gold, answer)
    if by_value is not None:
        return by_value
    if not (gold.strip() and answer.strip()):
        return False
    if _key(gold) == _key(answer):
        return True
    for decide in (_same_choice, _same_time):
        verdict = decide(gold, answer)
        if verdict is not None:
            return verdict
    split, other = _split(gold), _split(answer)
    # What has parts on both sides is compared by its parts.
    formulas = not (split[0] and other[0])
    return (
        (formulas and algebra is not None and algebra(gold, answer))
        or _same_as_interval(gold, answer, depth, algebra)
        or _same_without_unit(gold, answer, depth, algebra)
        or _same_without_name(gold, answer, depth, algebra)
        or (depth > 0 and _same_parts(split, other, depth, algebra))
    )


def _same_choice(gold: str, answer: str) -> bool | None:
    """The verdict on letters of multiple choice, with or without their text."""
    g, a = (CHOICE.fullmatch(TEXT.sub(r" \1 ", text).strip()) for text in (gold, answer))
    if g is None or (a is None and not g[3]):
        return None
    if a is None:
        return same(g[3], answer, 0)
    letters = [(m[1] or m[2]) for m in (g, a)]
    # Alone, single letters are variables, and x is not X.
    if letters[0] != letters[1]:
        return False
    return not (g[3] and a[3]) or same(g[3], a[3], 0)


def _same_time(gold: str, answer: str) -> bool | None:
    """The verdict on times of day; a.m. or p.m. may be missing on one side."""
    g, a = (TIME.fullmatch(TEXT.sub(r" \1 ", text).strip()) for text in (gold, answer))
    if g is None or a is None:
        return None
    clock = [[int(part or 0) for part in m.groups()[:3]] for m in (g, a)]
    halves = {m[4].lower() for m in (g, a) if m[4]}
    return clock[0] == clock[1] and len(halves) < 2


def _same_as_interval(gold: str, answer: str, depth: int, algebra: Algebra | None) -> bool:
    """Whether an inequality is the interval that the other one is (or also describes)."""
    g, a = intervals.of(gold), intervals.of(answer)
    if depth == 0 or g is None or a is None or (g.text == gold and a.text == answer):
        return False
    if g.name and a.name and g.name != a.name:
        return False
    return same(g.text, a.text, depth, algebra)


def _same_without_unit(gold: str, answer: str, depth: int, algebra: Algebra | None) -> bool:
    r"""Whether 2\pi \text{ cm} and 2\pi are the same; a unit may be missing on one side."""
    (g, g_unit), (a, a_unit) = split_unit(gold), split_unit(answer)
    if (g, a) == (gold, answer) or (g_unit and a_unit and g_unit != a_unit):
        return False
    return same(g, a, depth, algebra)


def _same_without_name(gold: str, answer: str, depth: int, algebra: Algebra | None) -> bool:
    """Whether x = 3 and 3, or x = 3 and x = 3.0, are the same; y = 3 is another."""
    named, other = VARIABLE.fullmatch(gold), VARIABLE.fullmatch(answer)
    if not (named or other) or (named and other and _key(named[1]) != _key(other[1])):
        return False
    g = named[2].strip() if named else gold
    a = other[2].strip() if other else answer
    return same(g, a, depth, algebra)


def _same_parts(gold: Parts, answer: Parts, depth: int, algebra: Algebra | None) -> bool:
    (kind, parts), (other_kind, other_parts) = gold, answer
    if not kind or kind != other_kind or len(parts) != len(other_parts):
        return False
    names, other_names = _names(parts), _names(other_parts)
    if len(names) > 1 and names != other_names:
        return False  # x=2, y=4 is not answered by 4, 2
    in_order = len(other_names) > 1 and not names  # 2, 4 is answered by x=2, y=4
    if (kind == "union" or kind.startswith("set")) and not in_order:
        return _same_members(parts, other_parts, depth - 1, algebra)
    pairs = zip(parts, other_parts, strict=True)
    return all(same(g, a, depth - 1, algebra) for g, a in pairs)


def _same_members(gold: list[str], answer: list[str], depth: int, algebra: Algebra | None) -> bool:
    """Whether two lists of equal length hold the same members, in any order."""
    shared = Counter(map(_key, gold)) & Counter(map(_key, answer))
    loose, rest = _without(gold, shared), _without(answer, shared)
    if len(loose) != len(rest) or len(loose) > MAX_LOOSE:
        return False
    for part in loose:
        match = next((other for other in rest if same(part, other, depth, algebra)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _names(parts: list[str]) -> set[str]:
    return {_key(named[1]) for part in parts if (named := VARIABLE.fullmatch(part))}


def _without(parts: list[str], keys: Counter[str]) -> list[str]:
    keys, left = Counter(keys), []
    for part in parts:
        keys[_key(part)] -= 1
        if keys[_key(part)] < 0:
            left.append(part)
    return left


def _key(text: str) -> str:
    """`text` in one spelling: no spaces, no \\text{}, no needless braces."""
    text = TEXT.sub(r" \1 ", text)
    for pattern, spelling in TEXT_KEY:
        text = pattern.sub(spelling, text)
    text = text.lower() if WORDS.fullmatch(text) else text
    return SYNONYMS.get(text, text)


def _split(text: str) -> Parts:
    """The parts of a union, a set, a tuple, an interval, a matrix or a list, and which it is.

    A tuple or interval is named by its brackets; "" means that there are no parts.
    """
    if r"\cup" in text:
        return "union", text.split(r"\cup")
    if matrix := MATRIX.fullmatch(text.strip()):
        rows = [row.split("&") for row in matrix[2].split(r"\\")]
        shape = "x".join(str(len(row)) for row in rows)
        return f"matrix {shape}", [entry.strip() for row in rows for entry in row]
    text = text.strip()
    for command, bracket in BRACKETS.items():
        text = text.replace(command, bracket)
    inner, kind = _at_commas(text[1:-1]), text[:1] + text[-1:]
    if kind == "⟨⟩" and inner is not None:
        return "set", list({_key(part): part for part in inner}.values())
    if kind[:1] in OPENING and kind[-1:] in CLOSING and inner is not None:
        return kind if len(inner) > 1 else "", inner
    if quantity(text) is not None:
        return "", [text]  # the commas of 1,000 part nothing
    parts = _at_commas(AND.sub(",", text)) or [text]
    parts = [_signed(p, sign) for p in parts for sign in ("+-" if r"\pm" in p else "+")]
    if len(parts) < 2:
        return "", parts
    # x<2 or x>5 is everything that x<2 and x>5 is not.
    joined = "".join(sorted(set(JOINED.findall(text)))) if intervals.RELATION.search(text) else ""
    return "set" + joined, parts


def _signed(text: str, sign: str) -> str:
    """`text` with one sign of its plus-minus chosen."""
    return text.replace(r"\pm", sign).replace(r"\mp", "-" if sign == "+" else "+")


def _at_commas(text: str) -> list[str] | None:
    """`text` cut at the commas outside brackets; None if its brackets do not match."""
    parts, depth, start = [], 0, 0
    for place, char in enumerate(text):
        depth += (char in OPENING) - (char in CLOSING)
        if depth < 0:
            return None
        if char == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part] if depth == 0 else None


def settled(gold: str, answer: str) -> bool:
    """Whether no algebra can make two cleaned answers equal: plain numbers are compared."""
    return (
        not (gold and answer)
        or same_quantity(gold, answer) is not None
        or (quantity(gold) is not None and answer.isalpha())
    )
