r"""The parts of an answer: members of lists and sets, entries of tuples and matrices."""

from __future__ import annotations

import re

from modicum.grading.quantities import quantity
from modicum.grading.spelling import key

Parts = tuple[str, list[str]]

OPENING, CLOSING = "([{⟨‹", ")]}⟩›"
BRACKETS = {r"\{": "⟨", r"\}": "⟩", r"\langle": "‹", r"\rangle": "›"}
RELATION = re.compile(r"[<>]|!=")
AND = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=\s)(?:and|or)(?=\s)|\\(?:lor|vee|land|wedge)(?![A-Za-z])|;"
)
JOINED = re.compile(r"\b(and|or)\b")
MATRIX = re.compile(
    r"\\begin\{((?:[bBp]|small)?matrix|array)\}(?:\{[lcr| ]*\})?(.*?)(?:\\\\\s*)?\\end\{\1\}",
    re.DOTALL,
)
NESTED = re.compile(r"(?:Matrix\()?\[\s*\[([^\[\]]*(?:\]\s*,?\s*\[[^\[\]]*)*)\]\s*\]\)?")
PAIR = re.compile(r"\(([^()=]+)\)\s*=\s*\((.+)\)")
NAME = re.compile(r"[A-Za-z]|[A-Za-z]_\{?\w\}?|\\[A-Za-z]+")


def split(text: str) -> Parts:
    """The parts of a union, a set, a tuple, an interval, a matrix or a list, and which it is.

    A tuple or interval is named by its brackets; "" means that there are no parts.
    """
    if r"\cup" in text:
        return "union" + "<" * bool(RELATION.search(text)), text.split(r"\cup")
    text = text.strip()
    if rows := rows_of(text):
        shape = "x".join(str(len(row)) for row in rows)
        return f"matrix {shape}", [entry.strip() for row in rows for entry in row]
    if (pair := PAIR.fullmatch(text)) and (values := at_commas(pair[2])):
        names = [name.strip() for name in pair[1].split(",")]
        if len(names) == len(values) > 1 and all(map(NAME.fullmatch, names)):
            return "set", [f"{name}={value}" for name, value in zip(names, values, strict=True)]
    text = with_brackets(text)
    inner, kind = at_commas(text[1:-1]), text[:1] + text[-1:]
    if kind in ("⟨⟩", "{}") and inner is not None:
        return "set", list({key(part): part for part in inner}.values())
    if kind[:1] in OPENING and kind[-1:] in CLOSING and inner is not None:
        return kind if len(inner) > 1 else "", inner
    if quantity(text) is not None:
        return "", [text]  # the commas of 1,000 part nothing
    parts = at_commas(AND.sub(",", text)) or [text]
    parts = [
        part.replace(r"\pm", sign).replace(r"\mp", "-" if sign == "+" else "+")
        for part in parts
        for sign in ("+-" if r"\pm" in part else "+")
    ]
    if len(parts) < 2:
        return "", parts
    # x<2 or x>5 is everything that x<2 and x>5 is not.
    joined = "".join(sorted(set(JOINED.findall(text)))) if RELATION.search(text) else ""
    return "set" + joined, parts


def rows_of(text: str) -> list[list[str]] | None:
    r"""The entries of a matrix: \begin{pmatrix} or [[1, 2], [3, 4]]; None if it is none."""
    if match := MATRIX.fullmatch(text):
        return [row.split("&") for row in match[2].split(r"\\")]
    match = NESTED.fullmatch(text)
    return [row.split(",") for row in re.split(r"\]\s*,?\s*\[", match[1])] if match else None


def with_brackets(text: str) -> str:
    r"""`text` with one character for \{ and the like."""
    for command, bracket in BRACKETS.items():
        text = text.replace(command, bracket)
    return text


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
