r"""Inequalities in one variable as intervals: x < 3 is (-\infty,3), x \ne 0 is a union."""

from __future__ import annotations

import re
from typing import NamedTuple

from modicum.grading.quantities import number

OR = re.compile(r"\\text\s*\{\s*or\s*\}|(?<=\s)or(?=\s)|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])")
RELATION = re.compile(r"(\\[lgn]e(?:q|qslant)?(?![A-Za-z])|\\[lg]t(?![A-Za-z])|[<>]=?)")
NAME = re.compile(r"[A-Za-z]|\\[a-z]+|[A-Za-z]_\{?\w\}?")
MEMBER = re.compile(r"([A-Za-z]|\\[a-z]+)\s*\\in(?![A-Za-z])\s*(.*)")
BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?)?\s*(?:\\mid|\||:)(.*)\\\}")
AND = re.compile(r"\\text\s*\{\s*and\s*\}|(?<=\s)and(?=\s)|\\(?:land|wedge)(?![A-Za-z])")
WITHOUT = re.compile(r"\\mathbb\s*\{?R\}?\s*(?:\\setminus|\\backslash|-)\s*\\\{([^{}\\]*)\\\}")
UP_TO, FROM = r"(-\infty,", r",\infty)"
MIRROR = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


class Described(NamedTuple):
    """An interval or a union of some, as text, and the variable in it ("" for none)."""

    name: str
    text: str


def of(text: str) -> Described | None:
    """The interval that `text` is or describes, else None."""
    text = text.strip()
    if builder := BUILDER.fullmatch(text):
        inner = of(builder[2])
        return inner if inner is not None and inner.name == builder[1] else None
    if member := MEMBER.fullmatch(text):
        inner = of(member[2])
        return None if inner is None or inner.name else Described(member[1], inner.text)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and "," in text and "=" not in text:
        return Described("", text)
    if without := WITHOUT.fullmatch(text):
        points = {
            value: part for part in without[1].split(",") if (value := number(part)) is not None
        }
        ends = [points[value].strip() for value in sorted(points)]
        pairs = zip(["-\\infty", *ends], [*ends, r"\infty"], strict=True)
        return Described("", r"\cup".join(f"({low},{high})" for low, high in pairs))
    if len(both := AND.split(text)) == 2:
        return _both(*map(_one, both))
    found = [_one(part) for part in OR.split(text)]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found) or len({part.name for part in parts}) != 1:
        return None
    return Described(parts[0].name, r"\cup".join(part.text for part in parts))


def _both(first: Described | None, second: Described | None) -> Described | None:
    """x > 1 and x < 3: a lower and an upper bound of one variable."""
    if first is None or second is None or first.name != second.name:
        return None
    if first.text.startswith(UP_TO):
        first, second = second, first
    if not (first.text.endswith(FROM) and second.text.startswith(UP_TO)) or "cup" in first.text:
        return None
    return Described(
        first.name, first.text.removesuffix(FROM) + "," + second.text.removeprefix(UP_TO)
    )


def _one(text: str) -> Described | None:
    """x < a, a < x < b, x \\ne a, and their mirrors."""
    sides = [side.strip() for side in RELATION.split(text)]
    signs = [_plain(sign) for sign in sides[1::2]]
    terms = sides[0::2]
    if "," in text or not all(terms) or len(terms) not in (2, 3):
        return None
    if len(terms) == 2:
        if not NAME.fullmatch(terms[0]):
            terms, signs = terms[::-1], [MIRROR[signs[0]]]
        name, end = terms
        if not NAME.fullmatch(name):
            return None
        if signs[0] == "!=":
            return Described(name, rf"(-\infty,{end})\cup({end},\infty)")
        if signs[0].startswith("<"):
            return Described(name, rf"(-\infty,{end}" + ("]" if "=" in signs[0] else ")"))
        return Described(name, ("[" if "=" in signs[0] else "(") + rf"{end},\infty)")
    if signs[0].startswith(">"):
        terms, signs = terms[::-1], [MIRROR[sign] for sign in signs[::-1]]
    low, name, high = terms
    if not NAME.fullmatch(name) or not all(sign.startswith("<") for sign in signs):
        return None
    opening, closing = ("[" if "=" in signs[0] else "("), ("]" if "=" in signs[1] else ")")
    return Described(name, f"{opening}{low},{high}{closing}")


def _plain(sign: str) -> str:
    if sign.startswith("\\"):
        return {"l": "<", "g": ">", "n": "!"}[sign[1]] + ("=" if sign[2] == "e" else "")
    return sign
