"""The helper process of `gym`: makes and scores problems of reasoning-gym.

Its reply to a request is {"value": ...}, {"fault": ...} when the data set refused, or
{"failed": ...} when its code raised.

No scorer may evaluate a model's text. Those of `EVALUATED` would (`eval`, or sympy's parser), and
are shown only what is plain arithmetic by its syntax tree. A data set whose source evaluates
something, and that is named neither there nor in `OWN`, is refused. gym.toml has the names."""

import ast
import dataclasses
import datetime
import inspect
import json
import operator
import random
import re
import sys
import time
import tokenize
import tomllib
import types
import typing
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from modicum.child import serve

MAX_MEMORY = 8 * 1024**3  # bytes of address space
SLOW_SECONDS = 0.005  # a data set that takes longer to build is built once and reseeded
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, NameError, OSError, RuntimeError, StopIteration, SyntaxError, TypeError,
    ValueError, tokenize.TokenError,
)  # fmt: skip

KEY = operator.itemgetter("name", "settings", "level", "seed")  # of a request
PLAIN = (int, float, bool, str)
READ = tomllib.loads(Path(__file__).with_name("gym.toml").read_text("utf-8"))
EVALUATED = {name: frozenset(functions.split()) for name, functions in READ["evaluated"].items()}
SETS = ("examples", "no_sympy", "own", "built_in", "library")
EXAMPLES, NO_SYMPY, OWN, BUILT_IN, LIBRARY = (READ[name].split() for name in SETS)
MAX_EXPONENT = 200
NOT_A_NUMBER = re.compile(r"(?i)(?<![a-z])(?:nan|inf(?:inity)?)[ij]?(?![a-z])")
NODES = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub,
)  # fmt: skip


def kinds(hint: Any) -> list[str] | None:
    """The types that a setting takes, by name; None when an expression cannot give it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found = [kinds(one) for one in arguments]
        return None if None in found else [kind for some in found for kind in some or []]
    if (origin or hint) in (list, tuple, Sequence):
        return ["list"] if all(kinds(one) for one in arguments if one is not Ellipsis) else None
    names = {typing.Literal: "str", type(None): "none"} | {t: t.__name__ for t in PLAIN}
    return [names[origin or hint]] if (origin or hint) in names else None


def describe(name: str) -> dict[str, Any]:
    """The settings of a data set and whether it has levels; or the names that there are."""
    from reasoning_gym.factory import CURRICULA, DATASETS

    if name not in DATASETS or name == "composite":
        return {"value": {"known": sorted(set(DATASETS) - {"composite"})}}
    if name not in {*EVALUATED, *OWN} and evaluates(DATASETS[name][0]):
        return {"fault": "its scorer may run the model's text as code; it is not allowed"}
    config, settings = DATASETS[name][1], {}
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        default, found = field.default, kinds(hints[field.name])
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name not in ("seed", "size") and found is not None:
            settings[field.name] = [found, default]
    return {"value": {"settings": settings, "levels": name in CURRICULA}}


def _shaped(value: Any, hint: Any) -> Any:
    if isinstance(value, list) and tuple in (hint, typing.get_origin(hint)):
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    return value


class Configured:
    """A data set with its settings (JSON); `level` sets all attributes of its curriculum."""

    def __init__(self, name: str, settings: str, level: int | None) -> None:
        from reasoning_gym.factory import CURRICULA, DATASETS

        self.cls, config = DATASETS[name]
        hints = typing.get_type_hints(config)
        given = {key: _shaped(value, hints[key]) for key, value in json.loads(settings).items()}
        if level is None:
            self.config = config(**given)
        else:
            curriculum = typing.cast(Any, CURRICULA[name])()
            for attribute, definition in curriculum.attributes.items():
                curriculum.set_attr_level(attribute, min(level, len(definition.levels) - 1))
            self.config = dataclasses.replace(curriculum.generate_configuration(), **given)
        if hasattr(self.config, "validate"):
            self.config.validate()
        self.shared: Any = None
        began = time.perf_counter()
        first = self.seeded(1)
        if time.perf_counter() - began > SLOW_SECONDS:
            # Most data sets look at `seed` only when a problem is made; this proves it.
            fresh, first = self.seeded(2)[0], self.seeded(2, first)
            if json.dumps(first[0], default=str) == json.dumps(fresh, default=str):
                self.shared = first

    def seeded(self, seed: int, dataset: Any = None) -> Any:
        """A data set, or this one, that gives the problem of `seed`."""
        random.seed(seed)
        if dataset is None:
            return self.cls(dataclasses.replace(self.config, seed=seed, size=1))
        dataset.seed = dataset.config.seed = seed
        return dataset


source = lru_cache(maxsize=16)(Configured)


@lru_cache(maxsize=512)
def problem(name: str, settings: str, level: int | None, seed: int) -> tuple[Any, dict[str, Any]]:
    """(the data set, the problem of `seed`), kept for the answers that will come to it."""
    made = source(name, settings, level)
    dataset = made.seeded(seed, made.shared)
    return dataset, dataset[0]


def make(request: dict[str, Any]) -> dict[str, Any]:
    """The question and the answer of a seed; the answer may be an example or None."""
    key = KEY(request)
    try:
        source(*key[:3])
    except FAILURES as error:
        return {"fault": " ".join(str(error).split()) or type(error).__name__}
    entry = problem(*key)[1]
    metadata = entry.get("metadata", {})
    example = next((metadata[key] for key in EXAMPLES if metadata.get(key)), None)
    answer = entry["answer"] if entry["answer"] is not None else example
    if isinstance(answer, dict):
        answer = json.dumps(answer)
    if answer is not None and (not answer.strip() or "Integral(" in answer):
        # Nothing to say (no real root), or no closed form: sympy repeats the question.
        return {"value": None}
    value = {"question": entry["question"], "answer": answer}
    numbers = ("numbers", "target") if request["name"] in ("countdown", "puzzle24") else ()
    return {"value": value | {key: metadata.get(key) for key in numbers}}


def score(request: dict[str, Any]) -> dict[str, Any]:
    """The score of an answer by the data set's own scorer; None: it was not let near it."""
    key = KEY(request)
    dataset, entry = problem(*key)
    if entry["question"].strip() != request["question"]:
        return {"fault": "its problems are not the same when they are made again"}
    if not harmless(request["name"], request["answer"], entry):
        return {"value": None}
    # The shared data set may have been reseeded since.
    if dataset.seed != request["seed"]:
        source(*key[:3]).seeded(request["seed"], dataset)
    return {"value": float(dataset.score_answer(request["answer"], entry))}


def answer(request: dict[str, Any], _: object) -> str:
    """The reply to a request; what a data set raises ends in {"failed": ...}."""
    actions = {"make": make, "score": score, "describe": lambda r: describe(r["name"])}
    try:
        return json.dumps(actions[request["do"]](request), default=_plain)
    except FAILURES as error:
        return json.dumps({"failed": f"{type(error).__name__}: {error}"[:200]})


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


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
            case _ if not isinstance(node, NODES):
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
    return bool(names & {*BUILT_IN, *LIBRARY} or methods & {*LIBRARY, "eval"})


if __name__ == "__main__":
    serve(answer, "reasoning_gym", RLIMIT_AS=MAX_MEMORY, RLIMIT_FSIZE=0, RLIMIT_CORE=0)
