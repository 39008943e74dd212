r"""Whether a problem of one split is also in another, in other spelling.

Two questions are the same when `normalise` gives the same text: case, spaces, punctuation
and how LaTeX is set (`\dfrac`, `\left`, `\,`, `$`) do not count; letters, numbers, signs and
operators do. This finds copies, not paraphrases.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from modicum.types import SPLITS, Problem, Split

SETTING = re.compile(
    r"\\(?:left|right|displaystyle|text|textbf|textit|mathrm|mathbf|quad|qquad|bigg?|Bigg?)"
    r"(?![a-z])|\\[,;:!\s()\[\]]|[~$]",
)
FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")  # \frac12
GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[-+*/=<>^%!|]")


def normalise(text: str) -> str:
    """`text` as its lower-case words, numbers and operators, one space between them."""
    text = unicodedata.normalize("NFKC", text)
    text = FRACTION.sub(r"\\frac", SETTING.sub(" ", text)).replace("\u2212", "-")
    text = SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    words = WORD.findall(GROUPED.sub("", text.lower()))
    return " ".join(words) or text.strip()


def overlap(one: Iterable[Problem], other: Iterable[Problem]) -> list[tuple[Problem, Problem]]:
    """The pairs (problem of `one`, first of `other` that asks the same)."""
    known: dict[str, Problem] = {}
    for problem in other:
        known.setdefault(normalise(problem.question), problem)
    found = ((problem, known.get(normalise(problem.question))) for problem in one)
    return [(problem, twin) for problem, twin in found if twin is not None]


def hold_out(
    placed: Sequence[tuple[Split, Problem]],
) -> tuple[list[tuple[Split, Problem]], list[tuple[Problem, Problem]]]:
    """What is left when no split holds a problem of a later one, and the pairs taken out.

    The order is train, tune, test: a test set stays whole, and what is trained on gives way.
    """
    keyed = [(split, problem, normalise(problem.question)) for split, problem in placed]
    held: dict[str, tuple[Split, Problem]] = {}  # the first problem of the last split that asks it
    for last in reversed(SPLITS):
        for split, problem, key in keyed:
            if split == last:
                held.setdefault(key, (split, problem))
    kept = [(split, problem) for split, problem, key in keyed if held[key][0] == split]
    taken = [(problem, held[key][1]) for split, problem, key in keyed if held[key][0] != split]
    return kept, taken
