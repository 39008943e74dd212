r"""Do two answers say the same: by exact value, by text, by parts, and by algebra if it is given.

`same` takes formulas apart and hands single ones to an `Algebra`; without one they are unequal.
`countdown` judges an expression by its exact value, parsed by `ast` and never evaluated."""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from modicum.grading import patterns, rules
from modicum.grading.parts import WRITTEN, Parts, reals, split
from modicum.grading.quantities import number, quantity, same_quantity, split_unit
from modicum.grading.spelling import TEXT, clean, key

MAX_EXPRESSION = 500  # characters
MAX_BRACKETS = 40
SIGNS = rules("countdown")
OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


class Algebra(NamedTuple):
    """Are two formulas equal; and the value of a constant, to order the ends of intervals by."""

    equal: Callable[[str, str], bool]
    value: Callable[[str], Fraction | None]


NO_ALGEBRA = Algebra(
    lambda gold, answer: False,
    lambda text: found.value if (found := quantity(text)) and not found.unit else None,
)
MAX_LOOSE = 12  # members of a list that are paired by trying

VARIABLE, CHOICE, CHOICES, BOUND, TIME = patterns("variable choice choices bound time")
ALLOWED, REFUSED = patterns("allowed refused")
INDEX = re.compile(r"_\{\d\}$")


def same(gold: str, answer: str, depth: int = 2, algebra: Algebra = NO_ALGEBRA) -> bool:
    """Whether two cleaned answers are the same, taken apart `depth` times at most."""
    for decide in (same_quantity, _same_text, _same_choice, _same_time):
        if (verdict := decide(gold, answer)) is not None:
            return verdict
    g, a = _bound(gold), _bound(answer)
    if g and a:
        return g[1] == a[1] and same(g[0], a[0], depth, algebra)
    parts, other = split(gold), split(answer)
    # What has parts on both sides is compared by its parts.
    formulas = not (parts[0] and other[0])
    return (
        (formulas and algebra.equal(gold, answer))
        or _same_reals(gold, answer, algebra)
        or _same_without_unit(gold, answer, depth, algebra)
        or _same_without_name(gold, answer, depth, algebra)
        or (depth > 0 and _same_parts(parts, other, depth, algebra))
    )


def _same_text(gold: str, answer: str) -> bool | None:
    if gold.strip() and answer.strip():
        return True if key(gold) == key(answer) else None
    return False


def _same_choice(gold: str, answer: str) -> bool | None:
    """The verdict on letters of multiple choice, with or without their text."""
    g, a = _choice(gold), _choice(answer)
    if g is None or (a is None and not g[3]):
        return None
    if a is None:
        return same(g[3], answer, 0)
    letter = (g[1] or g[2]) == (a[1] or a[2])
    return letter and (not (g[3] and a[3]) or same(g[3], a[3], 0))


def _choice(text: str) -> re.Match[str] | None:
    match = CHOICE.fullmatch(TEXT.sub(r" \1 ", text).replace("**", "").strip())
    return None if match is None or CHOICES.search(match[3] or "") else match


def _same_time(gold: str, answer: str) -> bool | None:
    """The verdict on times of day; a.m. or p.m. may be missing on one side."""
    g, a = (TIME.fullmatch(TEXT.sub(r" \1 ", text).strip()) for text in (gold, answer))
    if g is None or a is None:
        return None
    clock = [[int(part or 0) for part in m.groups()[:3]] for m in (g, a)]
    return clock[0] == clock[1] and len({m[4].lower() for m in (g, a) if m[4]}) < 2


def _bound(text: str) -> tuple[str, str] | None:
    r"""A formula with \ell for the name that is bound behind it, and that name's range."""
    if r"\in" not in text and "integer" not in text:
        return None
    text = TEXT.sub(r" \1 ", text)
    if (match := BOUND.search(text)) is None:
        return None
    formula = text[: match.start()]
    if match[0].endswith(r"\}"):
        formula = formula.lstrip().removeprefix(r"\{")
    name = match[1] or match[4] or match[5]
    # The name may stand before \pi or behind a digit, but in no command or word.
    formula = re.sub(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", r"\\ell ", formula)
    return formula.strip(), (match[2] or "Z") + (match[3] or "")


def _same_reals(gold: str, answer: str, algebra: Algebra) -> bool:
    if not WRITTEN.search(gold) and not WRITTEN.search(answer):
        return False
    g, a = reals(gold, algebra.value), reals(answer, algebra.value)
    return bool(g and a and g[1] == a[1] and len({g[0], a[0]} - {""}) < 2)


def _same_without_unit(gold: str, answer: str, depth: int, algebra: Algebra) -> bool:
    r"""Whether 2\pi \text{ cm} and 2\pi are the same; a unit may be missing on one side."""
    (g, g_unit), (a, a_unit) = split_unit(gold), split_unit(answer)
    if {g_unit, a_unit} in ({"degree", "radian"}, {"degree", ""}):
        angles = [rf"({g})^\circ", a] if g_unit == "degree" else [g, rf"({a})^\circ"]
        if algebra.equal(*angles):
            return True
        if r"\pi" in angles[0] + angles[1]:
            return False  # \pi/3 is no \pi/3 degrees
    if (g, a) == (gold, answer) or (g_unit and a_unit and g_unit != a_unit):
        return False
    return same(g, a, depth, algebra)


def _same_without_name(gold: str, answer: str, depth: int, algebra: Algebra) -> bool:
    """Whether x = 3 and 3, or x = 3 and x = 3.0, are the same; y = 3 is another."""
    named, other = VARIABLE.fullmatch(gold), VARIABLE.fullmatch(answer)
    name = named or other
    if name is None or (named and other and key(named[1]) != key(other[1])):
        return False
    if not _letters(_names(split(answer if named else gold)[1])) <= {key(name[1])}:
        return False  # (a,b) = (3,5) and a = 3, c = 5; x = \pm 2 and x = 2, y = -2
    g = named[2].strip() if named else gold
    a = other[2].strip() if other else answer
    return same(g, a, depth, algebra)


def _same_parts(gold: Parts, answer: Parts, depth: int, algebra: Algebra) -> bool:
    (kind, parts), (other_kind, other_parts) = gold, answer
    names, other_names = _names(parts), _names(other_parts)
    letters = _letters(other_names)
    if not kind or len(parts) != len(other_parts) or (names and not letters <= _letters(names)):
        return False
    if len(names) > 1 and names != other_names:
        return False  # x=2, y=4 is not answered by 4, 2
    if len(other_names) > 1 and len(letters) == 1 and names <= letters:  # x_1=2, x_2=-3
        parts, other_parts = (
            [named[2].strip() if (named := VARIABLE.fullmatch(part)) else part for part in some]
            for some in (parts, other_parts)
        )
    in_order = len(other_names) > 1 and not names and len(letters) > 1
    if in_order:  # 2, 4 or (2, 4) is answered by x=2, y=4
        kind, other_parts = "set" if kind == "()" else kind, sorted(other_parts, key=key)
    if kind != other_kind:
        return False
    if not in_order and kind.startswith(("union", "set")):
        return _same_members(parts, other_parts, depth - 1, algebra)
    pairs = zip(parts, other_parts, strict=True)
    return all(same(g, a, depth - 1, algebra) for g, a in pairs)


def _same_members(gold: list[str], answer: list[str], depth: int, algebra: Algebra) -> bool:
    """Whether two lists of equal length hold the same members, in any order."""
    loose, rest = [], list(answer)
    for part in gold:
        if (twin := next((other for other in rest if key(other) == key(part)), None)) is None:
            loose.append(part)
        else:
            rest.remove(twin)
    if len(loose) > MAX_LOOSE:
        return False
    for part in loose:
        match = next((other for other in rest if same(part, other, depth, algebra)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _names(parts: list[str]) -> set[str]:
    return {key(named[1]) for part in parts if (named := VARIABLE.fullmatch(part))}


def _letters(names: set[str]) -> set[str]:
    """Names without a number: x for x_1."""
    return {INDEX.sub("", name) for name in names}


def countdown(answer: str, numbers: Sequence[int], target: int) -> bool:
    """Whether `answer` reaches `target` with + - * / and brackets, each number used once; `= value`
    may follow, if it is the target."""
    if len(answer) > MAX_EXPRESSION:
        return False
    text, equals, claimed = SIGNS(clean(answer)).partition("=")
    used: list[int] = []
    return (
        not (equals and number(claimed) != target)
        and evaluate(text, used) == target
        and Counter(used) == Counter(numbers)
    )


def evaluate(text: str, used: list[int] | None = None) -> Fraction | None:
    """The exact value of whole numbers, which are added to `used`, joined by + - * / and brackets;
    None if it is none."""
    long = len(text) > MAX_EXPRESSION or text.count("(") > MAX_BRACKETS
    if long or not ALLOWED.fullmatch(text) or REFUSED.search(text):
        return None
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval")
        return _value(tree.body, [] if used is None else used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The value of a tree; a ValueError for anything but arithmetic, such as the call 2(3)."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, used)
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError("no arithmetic")
