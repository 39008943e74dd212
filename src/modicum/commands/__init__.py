"""Commands, each a function of what its parser has read that gives the exit code (see help.toml)."""

import argparse
import json
import os
from pkgutil import resolve_name
from typing import Any

from modicum.config import TrainConfig
from modicum.limits import Limits
from modicum.options import HELP, Parser, add_options, as_number


def folder(name: str) -> str:
    """A folder by its path, or as `modicum runs` names it."""
    listed = os.path.isfile(f"runs/{name}/config.toml") and not os.path.exists(name)
    return f"runs/{name}" if listed else name


TYPES: dict[str, dict[str, Any]] = {
    "folder": {"type": folder},
    "count": {"type": int, "metavar": "N"},
    "number": {"type": float, "metavar": "X"},
    "switch": {"action": argparse.BooleanOptionalAction},
}


def parser(name: str) -> Parser:
    """The parser of a command, with the arguments that help.toml has of it, and with an option for
    every field of its configs."""
    made, told, groups = Parser(name), HELP["commands"][name], dict[str, Any]()
    configs = {title: resolve_name(of) for title, of in told.get("configs", {}).items()}
    sources = HELP["sources"] if TrainConfig in configs.values() else {}
    for flag, given in {**sources, **told.get("arguments", {})}.items():
        how: dict[str, Any] = dict(given)
        how = TYPES.get(how.pop("type", ""), {}) | how
        group, title, limits = (how.pop(key, "") for key in ("one_of", "section", "limits"))
        if group and group not in groups:
            groups[group] = made.add_mutually_exclusive_group()
        if title and title not in groups:
            groups[title] = made.add_argument_group(title)
        default = how.pop("default", None)
        action = groups.get(group or title, made).add_argument(flag, **how)
        # Not before, or a switch says it in its help.
        action.default = action.default if default is None else default
        if limits:
            made.numbers[action] = how["type"], Limits(*limits)
            action.type = as_number
    for title, cls in configs.items():
        add_options(made, cls, title)
    return made


def printed(as_json: bool, values: Any, text: str, code: int = 0) -> int:
    """Print an outcome to standard output, for scripts or for people, and give the exit code."""
    print(json.dumps(values) if as_json else text)
    return code
