r"""The tokens of a formula, in LaTeX or plain text.

A number, a command such as \frac, a sign, or a variable, which has a dot before its name. x_1 is
three tokens; a run of up to three letters is a product, a longer one is a word and Unreadable.
"""

from __future__ import annotations

import re

from modicum.grading import WORDS, rules
from modicum.grading.quantities import DECIMAL
from modicum.grading.spelling import clean

MAX_TOKENS = 400
MAX_WORD = 3  # letters in a row that are read as a product

TOKEN = re.compile(
    rf"\s*(?:(?P<num>{DECIMAL})"
    r"|(?P<marked>\\(?:mathbf|vec|hat|bar|overline)\s*(?:\{\s*[A-Za-z]\s*\}|\s[A-Za-z]))"
    r"|(?P<command>\\[A-Za-z]+)|(?P<word>[A-Za-z]+)"
    r"|(?P<op>\*\*|<=|>=|!=|[-+*/^_!%()\[\]{}|=<>',°])|(?P<other>\S))",
    re.ASCII,
)
DATE = re.compile(r"\d+([-/])\d+\1\d+", re.ASCII)
WORD = re.compile(r"[A-Za-z]{3,}|[A-Z]{2}")  # as a whole answer
PLAIN = rules("formulas")
FUNCTIONS = frozenset(WORDS["analytic"].split() + WORDS["functions"].split())
GREEK = frozenset(WORDS["greek"].split())


class Unreadable(Exception):
    """The text is no formula that is understood for certain."""


class TooLarge(Unreadable):
    """The formula is read, but its numbers are too large for exact values."""


def tokens_of(text: str) -> list[str]:
    """The tokens of a formula; a variable has a dot before its name."""
    text = clean(text).replace("{,}", ",")
    if DATE.fullmatch(text) or (WORD.fullmatch(text) and text not in GREEK):
        raise Unreadable("a date or a word")
    for pattern, plain in PLAIN:
        text = pattern.sub(plain, text)
    tokens: list[str] = []
    for match in TOKEN.finditer(text.rstrip()):
        if match["other"]:
            raise Unreadable(match["other"])
        if word := match["word"]:
            tokens.extend(_letters(word))
        elif marked := match["marked"]:
            tokens.append("." + re.sub(r"[^A-Za-z]+", " ", marked).strip())
        elif command := match["command"]:
            tokens.append("." + command[1:] if command[1:] in GREEK else command)
        else:
            if match["num"] and "," in match[0] and not {"(", "["}.isdisjoint(tokens):
                raise Unreadable("(1,200) may be a pair")
            tokens.append("^" if match["op"] == "**" else match["num"] or match["op"])
        if len(tokens) > MAX_TOKENS:
            raise Unreadable("too long")
    return tokens


def _letters(word: str) -> list[str]:
    word = WORDS["aliases"].get(word, word)
    if word in FUNCTIONS or word in ("sqrt", "pi"):
        return ["\\" + word]
    if len(word) > 2 and word in GREEK:  # theta; xi and mu may be products
        return ["." + word]
    if len(word) > MAX_WORD:
        raise Unreadable(word)
    return ["." + letter for letter in word]
