r"""The child of `symbolic`, and the comparison that runs in it: own algebra, then math-verify.

Formulas that `latex` reads are decided by `algebra`. Others that have a command for it (sums,
integrals, limits, products of matrices) are asked of math-verify, with its tolerance for
rounding turned down. It has no say where we can read both.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from types import ModuleType

from modicum.child import outlast_signals
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


def same(gold: str, answer: str, notify: Callable[..., None]) -> bool:
    """Whether two cleaned answers are equal; `notify(importing="sympy")` before that import."""

    def decide(gold: str, answer: str) -> bool:
        try:
            return algebra.same(gold, answer)
        except latex.TooLarge:
            return False
        except FAILURES:
            return _verify(gold, answer, notify)

    try:
        return comparison.same(gold, answer, algebra=comparison.Algebra(decide, _value))
    except (RecursionError, MemoryError):
        return False


def _value(text: str) -> Fraction | None:
    with suppress(*FAILURES):
        return algebra.value(text)
    return None


def _verify(gold: str, answer: str, notify: Callable[..., None]) -> bool:
    if max(len(gold), len(answer)) > MAX_VERIFIED or quantity(gold) is not None:
        return False
    both = INDEX.sub("", f"{gold} {answer}")
    if not LIBRARY.search(both) or OURS.search(both):
        return False
    gold, answer = (
        LETTER_I.sub("j", text) if INDEX_I.search(text) else text for text in (gold, answer)
    )
    library = _library(notify)
    # Its own limit needs SIGALRM and the main thread; the parent enforces ours.
    trees = [library.parse(f"${text}$", parsing_timeout=0)[:1] for text in (gold, answer)]
    if not all(trees) or any(isinstance(tree[0], str) for tree in trees):
        return False
    return library.verify(
        *trees, float_rounding=DIGITS, numeric_precision=DIGITS, timeout_seconds=None
    )


@lru_cache(maxsize=1)
def _library(notify: Callable[..., None]) -> ModuleType:
    notify(importing="sympy")
    import math_verify

    # The first comparison loads much of sympy; that is no work of the answer that waits.
    texts = (r"$\sum_{k=1}^{n} k$", r"$\frac{n^2+n}{2}$")
    gold, answer = (math_verify.parse(text, parsing_timeout=0) for text in texts)
    math_verify.verify(gold, answer, timeout_seconds=None)
    notify(ready=True)
    return math_verify


def serve() -> None:
    """Answer questions from standard input until it closes."""
    outlast_signals()
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            questions.put(line)
        os._exit(0)  # the parent is gone, whatever the main thread is doing

    def reply(**message: object) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    logging.disable()  # math-verify warns that its own limit is off
    _limit("RLIMIT_AS", MAX_MEMORY)
    threading.Thread(target=read, daemon=True).start()
    reply(ready=True)
    while True:
        question = json.loads(questions.get())
        # One long multiplication keeps even the thread above waiting; the system then ends us.
        _limit("RLIMIT_CPU", int(time.process_time() + question["seconds"]) + SPARE_SECONDS)
        reply(same=same(question["gold"], question["answer"], reply))


def _limit(name: str, value: int) -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        kind = getattr(resource, name)
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    serve()
