r"""The value of a formula at a point: exact in fractions, else to 60 digits.

What would need more digits than there are, or a number too large to hold, is `TooLarge`; what is
not defined in the reals (without an i) is `Undefined`. So the work is bounded."""

import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import mpmath

from modicum.grading import WORDS
from modicum.grading.latex import Node, TooLarge

Value = Any  # Fraction, or a number of mpmath: they add and multiply, but do not compare

CONTEXT = mpmath.mp.clone()
CONTEXT.dps = 60
to_mp = CONTEXT.convert
CLOSE = CONTEXT.mpf(10) ** -40  # relative difference of two values that count as equal
NOTHING = CONTEXT.mpf(10) ** -45  # a function's value that counts as 0
MAX_BITS = 100_000  # of a fraction; and of the exponent of what is none
MAX_FACTORIAL = 5000


class Undefined(Exception):
    """An expression has no value at a point."""


def value_at(node: Node, point: Mapping[str, Fraction], with_i: bool) -> Value | None:
    """The value of a tree at a `point` of its variables, None for none. Raises TooLarge."""
    try:
        return _value(node, point, with_i)
    except (Undefined, ZeroDivisionError):
        return None


def _value(node: Node, point: Mapping[str, Fraction], with_i: bool) -> Value:
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind in ("var", "const"):
        return (point if kind == "var" else CONSTANTS)[node[1]]
    parts = [_value(part, point, with_i) for part in node[1:] if isinstance(part, tuple)]
    result = FUNCTIONS[node[1]](*parts) if kind == "fn" else OPERATIONS[kind](*parts)
    if isinstance(result, Fraction):
        if max(result.numerator.bit_length(), result.denominator.bit_length()) > MAX_BITS:
            raise TooLarge("a number too long")
        return result
    if isinstance(result, CONTEXT.mpc):
        if abs(result.imag) <= NOTHING * max(1, abs(result.real)):
            result = result.real
        elif not with_i:
            raise Undefined
    if not CONTEXT.isfinite(result):
        raise Undefined
    if result and abs(CONTEXT.mag(result)) > MAX_BITS:
        raise TooLarge("a number too large or too small")
    return result


def close(left: Value, right: Value) -> bool:
    """Whether two values are equal: exactly for fractions, else to 40 digits."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    left, right = to_mp(left), to_mp(right)
    return abs(left - right) <= CLOSE * max(abs(left), abs(right))


def _add(left: Value, right: Value) -> Value:
    if isinstance(total := left + right, Fraction):
        return total
    sizes = [abs(to_mp(value)) for value in (left, right)]
    least, most = min(sizes), max(sizes)
    if least and least < CLOSE * most:
        raise TooLarge("too few digits for so small a difference")
    return CONTEXT.mpf(0) if abs(total) <= NOTHING * most else total


def divide(left: Value, right: Value) -> Value:
    """left / right; ZeroDivisionError for a division by zero."""
    return (left if isinstance(right, Fraction) else to_mp(left)) / right


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            return _whole_power(base, exponent.numerator)
        if exponent.denominator <= 1000:
            return _whole_power(_root(base, Fraction(exponent.denominator)), exponent.numerator)
    if not base:
        raise Undefined
    base, exponent = to_mp(base), to_mp(exponent)
    size = CONTEXT.mag(exponent) if exponent else 0
    if size > 20 or abs(CONTEXT.mag(base)) * 2.0**size > 4 * MAX_BITS:
        raise TooLarge("a power too large")
    return CONTEXT.power(base, exponent)


def _whole_power(base: Value, exponent: int) -> Value:
    if not base and exponent <= 0:
        raise Undefined
    if isinstance(base, Fraction):
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        large = bits * abs(exponent) > 2 * MAX_BITS and abs(base) != 1 and base
    else:
        size = abs(CONTEXT.mag(base)) if base else 0
        large = size * abs(exponent) > 4 * MAX_BITS or abs(exponent) > MAX_BITS
    if large:
        raise TooLarge("a power too large")
    return base**exponent


def _root(value: Value, degree: Value) -> Value:
    """The real root where there is one: of a negative number if the degree is odd."""
    if not isinstance(degree, Fraction) or degree.denominator != 1 or degree < 1:
        return _power(value, divide(Fraction(1), degree))
    if (n := degree.numerator) > 1000:
        raise TooLarge("a root of a high degree")
    if not isinstance(value, CONTEXT.mpc) and value < 0 and n % 2:
        return -_root(-value, degree)
    if isinstance(value, Fraction) and value >= 0:
        top, bottom = _whole_root(value.numerator, n), _whole_root(value.denominator, n)
        if top is not None and bottom is not None:
            return Fraction(top, bottom)
    return CONTEXT.power(to_mp(value), CONTEXT.mpf(1) / n)


def _whole_root(value: int, n: int) -> int | None:
    guess = math.isqrt(value) if n == 2 else int(CONTEXT.nint(CONTEXT.root(value, n)))
    return guess if guess**n == value else None


def _analytic(name: str, value: Value) -> Value:
    """A function of mpmath, its argument bounded and small values cut to 0."""
    value = to_mp(value)
    if value and CONTEXT.mag(value) > 2000:
        raise TooLarge("an argument too large")
    try:
        result = getattr(CONTEXT, name)(value)
    except ValueError as error:
        raise Undefined from error
    if abs(result) > 1 / NOTHING:
        raise Undefined  # \tan 90 degrees
    return CONTEXT.mpf(0) if abs(result) < NOTHING else result


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise Undefined
        if value > MAX_FACTORIAL:
            raise TooLarge("a factorial too large")
        return Fraction(math.factorial(value.numerator))
    if isinstance(value, CONTEXT.mpc) or abs(value) > MAX_FACTORIAL:
        raise Undefined
    return CONTEXT.gamma(to_mp(value) + 1)


def _binomial(n: Value, k: Value) -> Value:
    whole = all(isinstance(value, Fraction) and value.denominator == 1 for value in (n, k))
    if whole and 0 <= k <= MAX_FACTORIAL and n >= 0:
        if n > MAX_FACTORIAL:
            raise TooLarge("a binomial too large")
        return Fraction(math.comb(n.numerator, k.numerator))
    return divide(_factorial(n), _factorial(k) * _factorial(_add(n, -k)))


def _whole_part(value: Value) -> Fraction:
    if isinstance(value, CONTEXT.mpc):
        raise Undefined
    if not isinstance(value, Fraction):
        near = CONTEXT.nint(value)
        value = Fraction(int(near if abs(near - value) <= CLOSE else CONTEXT.floor(value)))
    return Fraction(math.floor(value))


OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": _add, "mul": operator.mul, "div": divide, "pow": _power, "neg": operator.neg,
}  # fmt: skip
CONSTANTS: dict[str, Value] = {"pi": +CONTEXT.pi, "e": +CONTEXT.e, "i": CONTEXT.mpc(0, 1)}
_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log"}
FUNCTIONS: dict[str, Callable[..., Value]] = {
    name: partial(_analytic, _NAMES.get(name, name)) for name in WORDS["analytic"].split()
} | {
    **dict.fromkeys(("log", "lg"), lambda value, base=10: CONTEXT.log(value) / CONTEXT.log(base)),
    "exp": lambda value: _power(CONSTANTS["e"], value),
    "cis": lambda value: _power(CONSTANTS["e"], CONSTANTS["i"] * value),
    "cbrt": lambda value: _root(value, Fraction(3)),
    "abs": abs,
    "root": _root,
    "factorial": _factorial,
    "binom": _binomial,
    "floor": _whole_part,
    "ceil": lambda value: -_whole_part(-value),
    "percent": lambda value: value / Fraction(100),
    "degree": lambda value: value * CONSTANTS["pi"] / 180,
}
