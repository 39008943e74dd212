r"""The child of `answers`, and the comparison that runs in it: own algebra, then math-verify.

What `latex` cannot read and has a command for it (sums, integrals, limits, products of matrices)
is asked of math-verify, with its tolerance for rounding turned down.
"""

import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from types import ModuleType
from typing import Any

from modicum.child import limit, serve
from modicum.grading import algebra, comparison, latex
from modicum.grading.quantities import quantity

SPARE_SECONDS = 15  # of processor time above the limit, for importing sympy
MAX_MEMORY = 2 << 30  # bytes of address space, where limits exist
MAX_VERIFIED = 200  # characters of a formula that math-verify sees
LIBRARY = re.compile(r"\\(?:sum|prod|i{0,2}int|lim|begin|det|partial)(?![A-Za-z])")
# Where its readings and ours would differ: lists, relations, texts, open intervals.
OURS = re.compile(
    r"\\(?:text|mbox|in|cup|cap|infty|pm|l?dots|[lgn]eq?)(?![A-Za-z])|[=<>,]|[(\[]{8}"
)
# k=1 below a sum is no relation, \infty above it no end, and the comma of \, is none.
INDEX = re.compile(
    r"_\s*(?:\{[^{}]*\}|\w)(?:\s*\^\s*(?:\{[^{}]*\}|\\infty(?![A-Za-z])))?|\\[,;:! ]"
)
INDEX_I = re.compile(r"_\s*\{\s*i\s*=")  # which math-verify takes for the imaginary one
LETTER_I = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
DIGITS = 30  # that math-verify compares
FAILURES = (latex.Unreadable, RecursionError, OverflowError, MemoryError, ValueError)


def same(gold: str, answer: str, say: Callable[[str], None]) -> bool:
    """Whether two cleaned answers are equal; `say` is told when sympy is imported, and was."""

    def decide(gold: str, answer: str) -> bool:
        try:
            return algebra.same(gold, answer)
        except latex.TooLarge:
            return False
        except FAILURES:
            return _verify(gold, answer, say)

    try:
        return comparison.same(gold, answer, algebra=comparison.Algebra(decide, _value))
    except (RecursionError, MemoryError):
        return False


def _value(text: str) -> Fraction | None:
    with suppress(*FAILURES):
        return algebra.value(text)
    return None


def _verify(gold: str, answer: str, say: Callable[[str], None]) -> bool:
    both = INDEX.sub("", f"{gold} {answer}")
    long = max(len(gold), len(answer)) > MAX_VERIFIED
    if long or quantity(gold) is not None or not LIBRARY.search(both) or OURS.search(both):
        return False
    texts = [LETTER_I.sub("j", t) if INDEX_I.search(t) else t for t in (gold, answer)]
    library = _library(say)
    # Its own limit needs SIGALRM and the main thread; the parent enforces ours.
    trees = [library.parse(f"${text}$", parsing_timeout=0)[:1] for text in texts]
    if not all(trees) or any(isinstance(tree[0], str) for tree in trees):
        return False
    digits = {"float_rounding": DIGITS, "numeric_precision": DIGITS}
    return library.verify(*trees, timeout_seconds=None, **digits)


@lru_cache(maxsize=1)
def _library(say: Callable[[str], None]) -> ModuleType:
    say('{"importing": "sympy"}')
    import math_verify

    # The first comparison loads much of sympy; that is no work of the answer that waits.
    texts = (r"$\sum_{k=1}^{n} k$", r"$\frac{n^2+n}{2}$")
    gold, answer = (math_verify.parse(text, parsing_timeout=0) for text in texts)
    math_verify.verify(gold, answer, timeout_seconds=None)
    say('{"ready": true}')
    return math_verify


def answer(question: Any, say: Callable[[str], None]) -> str:
    """The verdict on a question of `answers.by_algebra`."""
    # One long multiplication keeps all threads waiting; the system then ends us.
    limit("RLIMIT_CPU", int(time.process_time() + question["seconds"]) + SPARE_SECONDS)
    return json.dumps({"same": same(question["gold"], question["answer"], say)})


if __name__ == "__main__":
    logging.disable()  # math-verify warns that its own limit is off
    serve(answer, lambda: '{"ready": true}', RLIMIT_AS=MAX_MEMORY)
