r"""The child of `answers`, and the comparison that runs in it: own algebra, then math-verify.

Are two formulas the same function, the same equation or the same inequality? Two expressions are equal
if their values are equal at random points (Schwartz 1980, doi 10.1145/322217.322225): exactly, in
fractions, or else to 40 of 60 digits. Equations are equal if left minus right of the one is a constant
multiple of the other's. Nothing is simplified.

What `latex` cannot read and has a command for it (sums, integrals, limits, products of matrices)
is asked of math-verify, with its tolerance for rounding turned down."""

import itertools
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from types import ModuleType
from typing import Any

from modicum.child import limit, serve
from modicum.grading import comparison, patterns
from modicum.grading.latex import Node, Relations, TooLarge, Unreadable, parse
from modicum.grading.parts import MIRROR
from modicum.grading.quantities import quantity, shows
from modicum.grading.values import CONTEXT, Value, close, divide, to_mp, value_at

SPARE_SECONDS = 15  # of processor time above the limit, for importing sympy
MAX_MEMORY = 2 << 30  # bytes of address space, where limits exist
MAX_VERIFIED = 200  # characters of a formula that math-verify sees
LIBRARY, OURS, INDEX, INDEX_I = patterns("library ours index index_i")
LETTER_I, IMAGINARY = patterns("letter_i imaginary")
DIGITS = 30  # that math-verify compares
FAILURES = (Unreadable, RecursionError, OverflowError, MemoryError, ValueError)
MIN_POINTS = 6  # at which both must be defined
SCALES = (1, 3, 1, 12, 2, 200, 5, 1, 40, 2, 3, 1, 6, 1, 2, 20)


def same(gold: str, answer: str, say: Callable[[str], None]) -> bool:
    """Whether two cleaned answers are equal; `say` is told when sympy is imported, and was."""

    def decide(gold: str, answer: str) -> bool:
        try:
            return same_formula(gold, answer)
        except TooLarge:
            return False
        except FAILURES:
            return _verify(gold, answer, say)

    try:
        return comparison.same(gold, answer, algebra=comparison.Algebra(decide, _value))
    except (RecursionError, MemoryError):
        return False


def _value(text: str) -> Fraction | None:
    """The real value of a formula, cut after 40 decimals, or None."""
    with suppress(*FAILURES):
        sides, relations = parse(text)
        if not (relations or _uses(sides[0], "i")):
            point = {  # large numbers, larger for a later letter: what orders a, b and 0
                name: Fraction(int.from_bytes(name.encode()[:6].ljust(6, b"!")), 2**32 + 15)
                for name in _variables(sides[0])
            }
            found = value_at(sides[0], point, False)
            return None if found is None else _decimal(found)
    return None


def same_formula(gold: str, answer: str) -> bool:
    """Whether two formulas are equal. Raises Unreadable for what is none."""
    g, a = parse(gold), parse(answer)
    if len(g.sides) != len(a.sides):
        return False
    if g.relations:
        return _same_relation(g, a)
    ((left,), (right,)) = g.sides, a.sides
    if _uses(left, "i") and not _uses(right, "i") and {"I", "j"}.isdisjoint(_variables(left)):
        right = parse(IMAGINARY.sub("i", answer)).sides[0]
    if quantity(gold) is not None and (_variables(right) or _undone(right)):
        return False
    return _same_value(left, right) or _is_rounded(left, answer)


def _same_value(left: Node, right: Node, with_i: bool = False) -> bool:
    with_i = with_i or _uses(left, "i") or _uses(right, "i")
    # |x| and x differ where only one is defined; \ln x^2 and 2\ln x are let pass.
    strict = _uses(left, "abs") != _uses(right, "abs")
    defined = names = 0
    for point, values in _values(left, right, with_i):
        names = len(point)
        if None in values:
            if strict and values != [None, None]:
                return False
            continue
        if not close(*values):
            return False
        defined += 1
        if defined >= MIN_POINTS or not names:
            return True
    # Two constants that are not real may be the same complex number.
    return not (names or with_i) and _same_value(left, right, with_i=True)


def _values(
    left: Node, right: Node, with_i: bool
) -> Iterator[tuple[Mapping[str, Fraction], list[Value]]]:
    """Points, and both values there; None for what has none, or needs more digits than there are."""
    for point in _points(sorted(_variables(left) | _variables(right))):
        try:
            yield point, [value_at(node, point, with_i) for node in (left, right)]
        except TooLarge:
            if not point:
                raise
            yield point, [None, None]  # other points tell them apart


def _is_rounded(gold: Node, answer: str) -> bool:
    r"""Whether `answer` is an irrational constant to six digits or more: 1.41421 for \sqrt2."""
    if (found := quantity(answer)) is None or found.unit or _variables(gold) or _uses(gold, "i"):
        return False
    value = value_at(gold, {}, False)
    endless = value is not None and not isinstance(value, Fraction)
    return endless and shows(_decimal(value), found.value, found.digits)


def _same_relation(gold: Relations, answer: Relations) -> bool:
    """Whether two (in)equalities say the same: one's difference is a multiple of the other's."""
    signs = tuple(MIRROR[sign] for sign in answer.relations)
    if len(gold.sides) > 2:
        alike = gold.relations == answer.relations
        return alike and all(map(_same_value, gold.sides, answer.sides))
    if gold.relations not in (answer.relations, signs):
        return False
    ratio = _ratio(*(("add", a, ("neg", b)) for a, b in (gold.sides, answer.sides)))
    if ratio is None or signs[0] in ("=", "!="):
        return ratio is not None
    # -x > -3 is x < 3: a negative factor turns the sign.
    return (ratio > 0) == (gold.relations == answer.relations)


def _ratio(left: Node, right: Node) -> Value | None:
    """left / right if that is a constant other than 0, else None."""
    ratio: Value = None
    points = 0
    for point, values in _values(left, right, False):
        if None in values or not point:
            continue
        top, bottom = values
        if bool(top) != bool(bottom):
            return None
        if not top:
            continue
        now = divide(top, bottom)
        if ratio is not None and not close(ratio, now):
            return None
        ratio, points = now, points + 1
        if points >= MIN_POINTS:
            return ratio
    return None


def _points(names: list[str]) -> Iterator[Mapping[str, Fraction]]:
    """Points to compare at: of both signs and several sizes, then whole numbers."""
    if not names:
        yield {}
        return
    rng = random.Random(0)
    for scale, positive in itertools.product(SCALES, (True, False)):
        size = 97 * scale
        negative = 0 if positive else rng.randrange(1, 2 ** len(names))  # one bit a name
        yield {
            name: Fraction(rng.randint(1, size), -97 if negative >> place & 1 else 97)
            for place, name in enumerate(names)
        }
    for least in range(1, 9):  # n! and (-1)^n may need them
        yield {name: Fraction(least + rng.randint(0, 12)) for name in names}


def _all(node: Node) -> Iterator[Node]:
    yield node
    for part in node[1:]:
        if isinstance(part, tuple):
            yield from _all(part)


def _variables(node: Node) -> set[str]:
    return {part[1] for part in _all(node) if part[0] == "var"}


def _uses(node: Node, name: str) -> bool:
    return any(part[0] in ("const", "fn") and part[1] == name for part in _all(node))


def _decimal(value: Value) -> Fraction:
    return Fraction(int(CONTEXT.nint(to_mp(value) * CONTEXT.mpf(10) ** 40)), 10**40)


def _undone(node: Node) -> bool:
    """Whether a calculation of rational numbers stands there: 12+45, 2*7; no fraction or power."""
    return any(
        kind in ("add", "mul", "div")
        and not (kind == "div" and parts[0][0] == parts[1][0] == "num")
        and all(isinstance(value_at(part, {}, False), Fraction) for part in parts)
        for kind, *parts in _all(node)
    )


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
    serve(answer, RLIMIT_AS=MAX_MEMORY)
