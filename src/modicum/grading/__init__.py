"""How answers are found and compared; `modicum.answers` is the way in (docs/grading.md).

extraction      the final answer in a text
comparison      are two answers the same: by value, text, parts; exact countdown arithmetic
spelling parts  one spelling of signs; members of lists, sets of reals
quantities      numbers with units
words.toml                     signs, functions, units and the like, by name
latex values                   formulas, and their values
equivalence                    their equality at random points, in a child with a time limit"""

import re
import tomllib
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text("utf-8"))


def pairs(name: str) -> dict[str, str]:
    """A text of WORDS as a table: each second word by the one before it."""
    words = WORDS[name].split()
    return dict(zip(words[::2], words[1::2], strict=True))


def firsts(name: str) -> dict[str, str]:
    """Of a text of WORDS in which lines or ; part the names of one thing: the first, by each."""
    found = (part.split() for part in re.split(r"[\n;]", WORDS[name]))
    return {word: words[0] for words in found for word in words}


def rules(name: str) -> Callable[[str], str]:
    """What rewrites a text by a list of WORDS: patterns, and what takes the place of each."""
    found = [(re.compile(pattern), new) for pattern, new in WORDS[name]]
    return lambda text: reduce(lambda now, rule: rule[0].sub(rule[1], now), found, text)


def patterns(names: str) -> list[re.Pattern[str]]:
    """Regular expressions of WORDS, which may hold others by their names."""
    return [re.compile(_whole(name), re.VERBOSE) for name in names.split()]


def _whole(name: str) -> str:
    return re.sub(r"\{([a-z]+)\}", lambda found: _whole(found[1]), WORDS["patterns"][name])
