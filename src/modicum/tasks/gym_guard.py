"""What a model's text must be before a scorer of reasoning-gym is shown it.

No scorer may evaluate a model's text. Those of `EVALUATED` would (`eval`, or sympy's parser), and
are shown only what is plain arithmetic by its syntax tree. A data set whose source evaluates
something, and that is named neither there nor in `OWN`, is refused.
"""

import ast
import inspect
import re
import sys
from typing import Any

_SYMBOLIC = "sin cos tan asin acos atan sec csc cot sinh cosh tanh exp log ln sqrt Abs"
SYMBOLIC = frozenset(_SYMBOLIC.split())
# Data sets whose scorer evaluates the answer, and the functions that a right one may call.
NO_SYMPY = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
EVALUATED: dict[str, frozenset[str]] = {
    **dict.fromkeys((*NO_SYMPY, "polynomial_multiplication", "countdown", "puzzle24"), frozenset()),
    **dict.fromkeys(("intermediate_integration", "simple_integration"), SYMBOLIC),
}
# These evaluate only what they made themselves (read in version 0.1.25).
OWN = frozenset(
    ("basic_arithmetic", "bitwise_arithmetic", "codeio", "gsm_symbolic", "number_sorting",
     "propositional_logic")
)  # fmt: skip
BUILT_IN = frozenset({"eval", "exec", "compile"})  # as a method, compile is another thing
LIBRARY = frozenset(("parse_expr", "parse_latex", "sympify", "S", "lambdify"))
MAX_EXPONENT = 200
NOT_A_NUMBER = re.compile(r"(?i)(?<![a-z])(?:nan|inf(?:inity)?)[ij]?(?![a-z])")
PLAIN = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub,
)  # fmt: skip


def plain(text: str, functions: frozenset[str]) -> bool:
    """Whether evaluating `text` can do no more than arithmetic and calls of `functions`."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) as function, args=[_], keywords=[]):
                called.add(id(function))
                if name not in functions:
                    return False
            case ast.Constant(value=value) if type(value) not in (int, float):
                return False  # sympy evaluates a text that a function is given
            case ast.BinOp(op=ast.Pow(), right=exponent) if not _small(exponent):
                return False
            case _ if not isinstance(node, PLAIN):
                return False
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return all(len(node.id) == 1 or id(node) in called for node in names)


def _small(node: ast.expr) -> bool:
    """Whether an exponent is a small number, or has a letter in it."""
    if any(isinstance(inner, ast.Pow) for inner in ast.walk(node)):
        return False
    constants = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
    return all(isinstance(v, int | float) and abs(v) <= MAX_EXPONENT for v in constants)


def harmless(name: str, answer: str, entry: dict[str, Any]) -> bool:
    """Whether `answer` may come to the scorer of the data set `name`."""
    # No comparison with what is not a number is true, and some scorers take that for no difference.
    if NOT_A_NUMBER.search(answer):
        return False
    if name not in EVALUATED or answer == entry["answer"] or plain(answer, EVALUATED[name]):
        return True
    try:
        # Without outer blanks, as `eval` takes it: with them it would not parse here.
        ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError):
        # What is no expression cannot be evaluated; sympy's parser rewrites it before.
        return name in NO_SYMPY
    except (RecursionError, MemoryError):
        pass
    return False


def evaluates(cls: type) -> bool:
    """Whether the module of a data set calls a function that runs a text as code."""
    tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {function.id for function in called if isinstance(function, ast.Name)}
    methods = {function.attr for function in called if isinstance(function, ast.Attribute)}
    return bool(names & (BUILT_IN | LIBRARY) or methods & (LIBRARY | {"eval"}))
