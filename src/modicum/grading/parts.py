r"""The parts of an answer: members of lists and sets, entries of tuples and matrices; sets of reals.

A set of reals is where it begins and ends, in order. An end is a value and 0 before it or 1 behind
it: [a,b) is (a,0) (b,0), and the point a is (a,0) (a,1). So equal sets have equal ends."""

import operator
import re
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from functools import reduce

from modicum.grading import patterns, rules
from modicum.grading.quantities import quantity
from modicum.grading.spelling import TEXT, key

Parts = tuple[str, list[str]]

OPENING, CLOSING = "([{⟨‹", ")]}⟩›"
with_brackets = rules("brackets")  # one character for \{ and the like
JOINT, MATRIX, BUILDER, NESTED = patterns("joint matrix builder nested")
PAIR, LETTER, JOINED, UNEQUAL = patterns("pair letter joined unequal")


def split(text: str) -> Parts:
    """The parts of a union, a set, a tuple, an interval, a matrix or a list, and which it is: a
    tuple or interval by its brackets, "" for no parts."""
    if r"\cup" in text:
        return "union" + "<" * bool(UNEQUAL.search(text)), text.split(r"\cup")
    text = text.strip()
    if rows := rows_of(text):
        shape = "x".join(str(len(row)) for row in rows)
        return f"matrix {shape}", [entry.strip() for row in rows for entry in row]
    if (pair := PAIR.fullmatch(text)) and (values := at_commas(pair[2])):
        names = [name.strip() for name in pair[1].split(",")]
        if len(names) == len(values) > 1 and all(map(LETTER.fullmatch, names)):
            return "set", [f"{name}={value}" for name, value in zip(names, values, strict=True)]
    text = with_brackets(text)
    inner, kind = at_commas(text[1:-1]), text[:1] + text[-1:]
    if kind in ("⟨⟩", "{}") and inner is not None:
        return "set", list({key(part): part for part in inner}.values())
    if kind[:1] in OPENING and kind[-1:] in CLOSING and inner is not None:
        return kind if len(inner) > 1 else "", inner
    if quantity(text) is not None:
        return "", [text]  # the commas of 1,000 part nothing
    parts = at_commas(JOINT.sub(",", text)) or [text]
    parts = [
        part.replace(r"\pm", sign).replace(r"\mp", "-" if sign == "+" else "+")
        for part in parts
        for sign in ("+-" if r"\pm" in part else "+")
    ]
    if len(parts) < 2:
        return "", parts
    # x<2 or x>5 is everything that x<2 and x>5 is not.
    joined = "".join(sorted(set(JOINED.findall(text)))) if UNEQUAL.search(text) else ""
    return "set" + joined, parts


def rows_of(text: str) -> list[list[str]] | None:
    r"""The entries of a matrix: \begin{pmatrix} or [[1, 2], [3, 4]]; None if it is none."""
    if match := MATRIX.fullmatch(text):
        return [row.split("&") for row in match[2].split(r"\\")]
    match = NESTED.fullmatch(text)
    return [row.split(",") for row in re.split(r"\]\s*,?\s*\[", match[1])] if match else None


def at_commas(text: str) -> list[str] | None:
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


# Sets of reals --------------------------------------------------------------------------

Ends = tuple[tuple[Fraction | float, int], ...]
Reals = tuple[str, Ends]  # and the variable in the set, "" for none
Value = Callable[[str], Fraction | None]

MAX_PARTS = 20
KEEP = {"cap": operator.and_, "setminus": operator.gt}  # gt: in the left, not in the right
OR, AND, OPERATION, MINUS, EXCEPT, WRITTEN = patterns("or and operation minus except written")
RELATION, NAME, MEMBER, REAL, INFINITE = patterns("relation name member real infinite")
ALL: Ends = ((float("-inf"), 1), (float("inf"), 0))
MIRROR = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


class Unknown(Exception):
    """The text is no set of real numbers that is understood."""


def reals(text: str, value: Value) -> Reals | None:
    """The set of real numbers that `text` is or describes, else None."""
    text = " ".join(with_brackets(TEXT.sub(r" \1 ", text)).split())
    try:
        return _either(MINUS.sub(r"\\setminus", text), value)
    except Unknown:
        return None


def _either(text: str, value: Value) -> Reals:
    if builder := BUILDER.fullmatch(text):
        inner = _either(builder[2].strip(), value)
        if inner[0] == builder[1]:
            return inner
        raise Unknown
    if words := EXCEPT.fullmatch(text):
        return ("", _combined(ALL, _points(words[1], value), operator.gt))
    return _joined([_both(part, value) for part in OR.split(text)], operator.or_)


def _both(text: str, value: Value) -> Reals:
    """x > 1 and x < 3, and the same with a comma; x \\ne 1, 2 is one relation."""
    parts: list[str] = []
    for part in at_commas(AND.sub(",", text)) or []:
        if parts and not RELATION.search(part) and not MEMBER.match(part):
            parts[-1] += "," + part
        else:
            parts.append(part)
    if not parts:
        raise Unknown
    found = _joined([_one(part, value) for part in parts], operator.and_)
    if len(parts) > 1 and not found[1]:
        raise Unknown  # x<1, x>2 may be meant as "or"
    return found


def _joined(sets: list[Reals], keep: Callable[[bool, bool], bool]) -> Reals:
    if len(names := {name for name, _ in sets} - {""}) > 1 or len(sets) > MAX_PARTS:
        raise Unknown
    ends = reduce(lambda left, right: _combined(left, right, keep), [ends for _, ends in sets])
    return ("".join(names), ends)


def _one(text: str, value: Value) -> Reals:
    """x < a, a < x < b, x \\ne a and their mirrors, x \\in a set, or a set."""
    if member := MEMBER.fullmatch(text):
        return (member[1], _set(member[2], value))
    if len(parts := [part.strip() for part in RELATION.split(text)]) == 1:
        return ("", _set(text, value))
    if len(parts) == 5 and parts[1][0] == parts[3][0]:
        halves = parts[2] + MIRROR[parts[1]] + parts[0], "".join(parts[2:])
        return _joined([_one(half, value) for half in halves], operator.and_)
    if len(parts) > 3:
        raise Unknown
    name, sign, end = parts
    if not NAME.fullmatch(name):
        name, sign, end = end, MIRROR[sign], name
    if not NAME.fullmatch(name):
        raise Unknown
    if sign[0] in "<>":
        low, high = rf"(-\infty,{end}" + ")]"[sign == "<="], "(["[sign == ">="] + rf"{end},\infty)"
        return (name, _term(low if sign[0] == "<" else high, value))
    points = _points(end, value)
    return (name, points if sign == "=" else _combined(ALL, points, operator.gt))


def _set(text: str, value: Value) -> Ends:
    """Intervals, points and the reals, joined by \\cap and \\setminus from left to right."""
    first, *rest = OPERATION.split(text)
    ends = _term(first.strip(), value)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        ends = _combined(ends, _term(term.strip(), value), KEEP[sign])
    return ends


def _term(text: str, value: Value) -> Ends:
    if REAL.fullmatch(text):
        return ALL
    if text in (r"\emptyset", r"\varnothing"):
        return ()
    if text[:1] + text[-1:] in ("⟨⟩", "{}"):
        return _points(text[1:-1], value)
    parts = at_commas(text[1:-1]) or []
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or len(parts) != 2:
        raise Unknown
    low, high = (_number(part, value) for part in parts)
    first, last = (low, int(text[0] == "(")), (high, int(text[-1] == "]"))
    if not first < last or first == (ALL[0][0], 0) or last == (ALL[1][0], 1):
        raise Unknown  # nothing is closed at infinity
    return first, last


def _points(text: str, value: Value) -> Ends:
    """The set of the numbers in a list."""
    texts = at_commas(AND.sub(",", text)) or []
    numbers = {
        _number(part.replace(r"\pm", sign), value)
        for part in texts
        for sign in ("+-" if r"\pm" in part else "+")
    }
    if not numbers:
        raise Unknown
    return tuple((number, side) for number in sorted(numbers) for side in (0, 1))


def _number(text: str, value: Value) -> Fraction | float:
    if infinite := INFINITE.fullmatch(text):
        return float(infinite[1] + "inf")
    if (number := value(text)) is None:
        raise Unknown
    return number


def _combined(left: Ends, right: Ends, keep: Callable[[bool, bool], bool]) -> Ends:
    """The set of the points that `keep` says, of whether they are in `left` and in `right`."""
    ends = []
    for end in sorted({*left, *right}):
        inside = keep(bisect_right(left, end) % 2 == 1, bisect_right(right, end) % 2 == 1)
        if inside != len(ends) % 2:
            ends.append(end)
    return tuple(ends)
