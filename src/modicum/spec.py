"""The one expression language: `last(5) & parts(mlp)`, `accuracy + 0.2*format`.

It is parsed with `ast` and built by calling the members' own dataclasses and operators; nothing is
ever evaluated. `str()` of the object gives the expression back."""

import ast
import copy
import dataclasses
import difflib
import operator
import os
import re
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Self

from modicum.limits import MAX_FLOAT, check_limits
from modicum.types import Frozen, UserError

MAX_LENGTH = 2000
PATH_LIKE = re.compile(r"[(=,]\s*(~|\.{0,2}[/\\]\w|\w:\\)")
HALF = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
WORDS |= {type(None): "nothing"}
GIVEN = "given"
"""What stands for an object of Python that no expression gives again: `given('my_function')`."""
JOIN: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.BitAnd: ("&", operator.and_),
    ast.MatMult: ("@", operator.matmul),
    ast.Mult: ("*", operator.mul),
}


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Spec:
    """Base of everything that has an expression: every class below it is a dataclass, frozen unless
    it says `frozen=False`, and has the name of its class, unless it says another: `DrGrpo` is
    `dr_grpo`. A field named in `varargs` takes all positional arguments (`layers(10, 11)`)."""

    name: ClassVar[str]
    varargs: ClassVar[str | None] = None

    def __init_subclass__(cls, frozen: bool = True) -> None:
        cls.name = vars(cls).get("name", re.sub("(?<!^)([A-Z])", r"_\1", cls.__name__).lower())
        dataclasses.dataclass(frozen=frozen, eq=frozen)(cls)
        if frozen:  # by what follows, so that whoever is used to the decorator may write it too
            del cls.__setattr__, cls.__delattr__
        else:
            cls.__setattr__ = object.__setattr__  # type: ignore[method-assign]

    def __setattr__(self, name: str, _: object = None) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    __delattr__ = __setattr__

    def __post_init__(self) -> None:
        check_limits(self, f"{self.name}: ")
        for name, hint in _words_of(type(self)).items():
            check(f"{self.name}: {name}", getattr(self, name), hint)

    def having(self, **values: Any) -> Self:
        """The same with more attributes, which are no fields and change no expression."""
        made = copy.copy(self)
        vars(made).update(values)
        return made

    def __str__(self) -> str:
        shown: list[str] = []
        for field in arguments(type(self)):
            value = getattr(self, field.name)
            if field.name == self.varargs:
                shown += [item if isinstance(item, str) else repr(item) for item in value]
            elif field.default is dataclasses.MISSING:
                shown.append(repr(value))
            elif value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{self.name}({', '.join(shown)})" if shown else self.name


@lru_cache(maxsize=256)
def _words_of(cls: type) -> Mapping[str, Any]:
    """The types of the fields that take one of some words."""
    hints = typing.get_type_hints(cls)
    return {n: hint for n, hint in hints.items() if typing.get_origin(hint) is typing.Literal}


def arguments(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields of a member that an expression can give, those without a place last."""
    return sorted((f for f in dataclasses.fields(cls) if f.init), key=lambda f: bool(f.kw_only))


def describe(cls: type) -> dict[str, str]:
    """Name, signature and summary of a member, for lists."""
    varargs = getattr(cls, "varargs", None)
    shown = [f"{f.name}, ..." if f.name == varargs else _shown(f) for f in arguments(cls)]
    name = cls.name  # type: ignore[attr-defined]
    signature = f"{name}({', '.join(shown)})" if shown else name
    summary = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    return {"name": name, "signature": signature, "summary": summary}


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """`did you mean 'x'?` when something known is close to `word`, and all that is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    # Of equally near ones that with the same letters is meant: gpro is grpo, not gspo.
    close.sort(key=lambda name: sorted(name) != sorted(word))
    listed = ", ".join(known)
    return f"did you mean {close[0]!r}? (known: {listed})" if close else f"known are {listed}"


def build(kind: str, text: str, members: Mapping[str, type], code: str = "") -> Any:
    """The object that `text` describes, made of `members` (name -> dataclass); `kind` is the word
    used in messages ("update"), `code` is read in the place of the text. Raises UserError with the
    nearest right name, the allowed arguments, or the place where the text does not parse."""
    tree = _parsed(kind, text, (code or text).strip())
    try:
        made = _Builder(kind, text, members).build(tree)
    except RecursionError:
        raise UserError(f"{kind}: the expression is nested too deeply") from None
    if isinstance(made, int | float):
        raise UserError(f"{kind} {text!r} is a number, not one of {', '.join(members)}")
    return made


def keywords(kind: str, text: str) -> dict[str, Any]:
    """The values of `name=value, name=value`: numbers, texts, words, true, false, None, lists."""
    match _parsed(kind, text, f"named({text})"):
        case ast.Call(func=ast.Name("named"), args=[], keywords=found):
            values = {word.arg: _Builder(kind, text, {}).argument(word.value) for word in found}
            if len(values) == len(found) and None not in values:
                return {str(name): value for name, value in values.items()}
    raise UserError(f"{kind} {text!r} must be name=value, name=value, each name once")


def _parsed(kind: str, text: str, code: str) -> ast.expr:
    """The tree of `code`, which is made of `text`; UserError when it does not parse."""
    if len(text) > MAX_LENGTH:
        raise UserError(f"{kind}: the expression is longer than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            # Python warns of '\\d' and `1()` on standard error; what is wrong is said here.
            warnings.simplefilter("ignore")
            return ast.parse(code, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        detail = error.msg if isinstance(error, SyntaxError) else "not an expression"
        if PATH_LIKE.search(text):
            detail += " (a path stands in quotes)"
        raise UserError(f"{kind} {text!r} does not parse: {detail}") from None


class _Builder(Frozen):
    kind: str
    text: str
    members: Mapping[str, type]

    def build(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name):
                return self.call(name, [], [])
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                return self.call(name, args, keywords)
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in JOIN:
                sign, apply = JOIN[type(op)]
                try:
                    return apply(self.build(left), self.build(right))
                except OverflowError:
                    raise self.error("a number is too large") from None
                except TypeError:
                    both = f"{ast.unparse(left)!r} and {ast.unparse(right)!r}"
                    why = f"cannot be joined with {sign} (brackets may be missing)"
                    raise self.error(f"{both} {why}") from None
        raise self.error(f"{ast.unparse(node)!r} is not allowed in an expression")

    def call(self, name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Any:
        if name == GIVEN:
            raise UserError.of("was_an_object", kind=self.kind, text=self.text)
        if name not in self.members:
            raise UserError(f"unknown {self.kind} {name!r}; {nearest(name, self.members)}")
        cls = self.members[name]
        fields = {f.name: f for f in arguments(cls)}
        values: dict[str, Any] = {}
        positional = [self.argument(arg) for arg in args]
        takes = ", ".join(map(_shown, fields.values())) or "no arguments"
        if (varargs := getattr(cls, "varargs", None)) is not None:
            if positional or all(keyword.arg != varargs for keyword in keywords):
                values[varargs] = tuple(positional)
        elif len(positional) > len(fields):
            raise self.error(f"{name} takes {takes}")
        else:
            values.update(zip(fields, positional, strict=False))
        for keyword in keywords:
            if (word := getattr(cls, "aliases", {}).get(keyword.arg, keyword.arg)) not in fields:
                raise self.error(f"{name} has no argument {word or '**'!r}; it takes {takes}")
            if word in values:
                raise self.error(f"{name} got {word!r} twice")
            values[word] = self.argument(keyword.value)
        for field in fields.values():
            if field.name not in values and _required(field):
                raise self.error(f"{name} needs {field.name!r}; it takes {takes}")
        hints = typing.get_type_hints(cls)
        checked = {k: check(f"{self.kind} {name}: {k}", v, hints[k]) for k, v in values.items()}
        return cls(**checked)

    def argument(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return value
            case ast.Name(id="true" | "false" as word):
                return word == "true"
            case ast.Name(id=name):
                return name
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.Call(func=ast.Name(id=name)) if name in self.members:
                return ast.unparse(node)  # `placebo(easy_to_hard(stages=2))`
            case ast.List(elts=elts) | ast.Tuple(elts=elts):
                return tuple(self.argument(item) for item in elts)
        text, parts = ast.unparse(node), list(map(type, ast.walk(node)))
        if ast.Name in parts and {ast.Attribute, ast.Div} & set(parts):  # sums.csv, data/sums
            raise self.error(f"quotes are missing: '{text.replace(' ', '')}'")
        raise self.error(f"{text!r} is not a value (numbers, strings, names, lists)")

    def error(self, message: str) -> UserError:
        return UserError(f"{self.kind} {self.text!r}: {message}")


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _shown(field: dataclasses.Field[Any]) -> str:
    return field.name if _required(field) else f"{field.name}={field.default!r}"


def check(what: str, value: Any, hint: Any) -> Any:
    """`value` as the type that `hint` asks for, or a UserError that begins with `what`. Whole
    floats become ints and ints become floats; texts and booleans are never numbers, nor are
    infinities and what is not a number. Paths are texts, numbers of numpy are Python's."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "item") and not getattr(value, "ndim", 1):
        value = value.item()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for arg in args:
            try:
                return check(what, value, arg)
            except UserError:
                continue
    elif origin is typing.Literal:
        if type(value) in map(type, args) and value in args:
            return value
        raise UserError(f"{what} is {short(value)}; {nearest(str(value), map(str, args))}")
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(check(what, item, args[0]) for item in value)
    elif isinstance(hint, type):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if hint is int and number and (isinstance(value, int) or value.is_integer()):
            return int(value)
        if hint is float and number and -MAX_FLOAT <= value <= MAX_FLOAT:
            return float(value)
        if hint is str and isinstance(value, str) and HALF.search(value):
            raise UserError(f"{what} must be a text in UTF-8, not {value!r}")
        if hint not in (int, float) and isinstance(value, hint):
            return value
    raise UserError(f"{what} must be {_words(hint)}, not {short(value)}")


def short(value: object) -> str:
    """A value as code, in one line and not a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _words(hint: Any) -> str:
    if hint in WORDS:
        return WORDS[hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_words(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "a list of which each is " + _words(typing.get_args(hint)[0])
    if dataclasses.is_dataclass(hint):
        return f"a {getattr(hint, '__name__', '')} or a dict"
    return getattr(hint, "__name__", str(hint))
