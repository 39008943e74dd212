"""Command-line options from config dataclasses: one option a field, sections flattened.

The help text is the field's docstring. Values are checked by the dataclass itself, so the command
line, TOML and Python refuse the same things in the same words."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import os
import re
import textwrap
import tomllib
import typing
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from modicum.limits import Limits
from modicum.settings import AUTO, elsewhere, from_mapping, places, tables
from modicum.spec import check, nearest
from modicum.types import UserError

C = TypeVar("C")
HELP = tomllib.loads((Path(__file__).parent / "commands" / "help.toml").read_text("utf-8"))
"""What help says, the line, text and examples of every command among it."""
WORDS = {int: "N", float: "X", str: "TEXT"}
HOME = re.compile(r"^(|--[\w-]+=)~(?=/)")


class Parser(argparse.ArgumentParser):
    """The parser of a command: errors are one line and exit code 2; every command has --json."""

    def __init__(self, name: str) -> None:
        text, self.numbers = HELP["commands"][name], dict[argparse.Action, tuple[type, Limits]]()
        super().__init__(
            prog=f"modicum {name}",
            description=text["about"],
            epilog="examples:\n" + textwrap.indent(text["examples"].strip(), "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--json", action="store_true", help="print the outcome as JSON")

    def error(self, message: str) -> NoReturn:
        """Raise a UserError with the message."""
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = (action.option_strings or [action.dest])[0]
            self.error(f"{name} is {value!r}; {nearest(value, action.choices)}")

    def read(self, args: list[str]) -> argparse.Namespace:
        """Parse `args`; an unknown option is answered with the nearest known one."""
        # A shell expands `--out ~/run` and not `--out=~/run`.
        home = os.path.expanduser("~")
        args = [HOME.sub(lambda match: match[1] + home, arg) for arg in args]
        found, unknown = self.parse_known_args(args)
        if unknown:
            known = {o.lstrip("-"): o for action in self._actions for o in action.option_strings}
            word = unknown[0].split("=")[0]
            close = difflib.get_close_matches(word.lstrip("-"), known, n=1)
            hint = elsewhere(word, dict.fromkeys(known, ""), option=True)
            hint = hint or (f"did you mean {known[close[0]]}?" if close else "")
            self.error(f"unknown option {unknown[0]!r}{hint and f'; {hint}'}")
        for action in self._actions:
            value = getattr(found, action.dest, None)
            # A variable of the shell that is not set must not stand for what is taken by default.
            if value in ("", [""]) and action.default not in (argparse.SUPPRESS, value):
                self.error(str(argparse.ArgumentError(action, "an empty text is no value")))
            if action in self.numbers and value is not None:
                kind, limits = self.numbers[action]
                setattr(found, action.dest, check(action.option_strings[0], value, kind))
                limits.check(action.option_strings[0], value)
        return found


def several(text: str | None) -> list[str]:
    """What stands in a text, separated by ';'."""
    return [part.strip() for part in (text or "").split(";") if part.strip()]


@lru_cache(maxsize=64)
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass."""
    docs: dict[str, str] = {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    for entry, after in itertools.pairwise(typing.cast(ast.ClassDef, tree).body):
        match entry, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str() as text)):
                docs[name] = " ".join(text.split())
    return docs


def add_options(parser: argparse.ArgumentParser, cls: type, title: str = "run") -> None:
    """One option for every field of the dataclass `cls` and of its sections."""
    group = parser.add_argument_group(title)
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    sections = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            sections.append((field.name, typing.cast(type, hint)))
            continue
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
        default = AUTO if AUTO in field.metadata else field.default
        shown = "" if default in (None, "") else f" (default {default})"
        types = [hint, *typing.get_args(hint)]
        word = next((word for of, word in WORDS.items() if of in types), "VALUE")
        kind: Any = {"metavar": "|".join(map(str, choices or ())) or word}
        if tuple in map(typing.get_origin, types):
            kind = {"metavar": "TEXT", "action": "append"}
        if bool in types:
            shown, kind = "", {"action": argparse.BooleanOptionalAction}
        elif {int, float} & set(types):
            kind["type"] = as_number
        text = (docs[field.name] + shown).replace("%", "%%")
        flag = "--" + field.name.replace("_", "-")
        kind |= {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
        group.add_argument(flag, **kind)
    for name, section in sections:
        add_options(parser, section, name)


def given(cls: type, found: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as nested tables."""
    known = places(cls)
    return tables(cls, {n: value for n, value in vars(found).items() if n in known}, "options")


def config_of(cls: type[C], found: argparse.Namespace) -> C:
    """The config of the options that were given, and of defaults."""
    return from_mapping(cls, given(cls, found), "options")


def as_number(text: str) -> int | float | str:
    """A text as a number, if it is one."""
    for kind in (int, float):  # 1e3 steps are whole
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Nested tables with the values of `high` over those of `low`."""
    both = {k for k, v in high.items() if isinstance(v, dict) and isinstance(low.get(k), dict)}
    return {**low, **high, **{key: merge(low[key], high[key]) for key in both}}
