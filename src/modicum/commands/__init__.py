"""Commands, each a function of its arguments that gives the exit code (see help.toml)."""

from typing import Any

from modicum.options import HELP, Parser, show

TYPES: dict[str, dict[str, Any]] = {"count": {"type": int}, "number": {"type": float}}


def parser(name: str) -> Parser:
    """The parser of a command, with the arguments that help.toml has of it."""
    made, told, groups = Parser(name), HELP["commands"][name], dict[str, Any]()
    sources = HELP["sources"] if told.get("sources") else {}
    for flag, given in {**sources, **told.get("arguments", {})}.items():
        how: dict[str, Any] = dict(given)
        kind, group = how.pop("type", ""), how.pop("one_of", "")
        if group and group not in groups:
            groups[group] = made.add_mutually_exclusive_group()
        if kind == "folder":
            made.folder(flag, how.pop("help"), **how)
        else:
            groups.get(group, made).add_argument(flag, **how, **TYPES.get(kind, {}))
    return made


def printed(as_json: bool, values: Any, text: str, code: int = 0) -> int:
    """Print an outcome, for scripts or for people, and give the exit code."""
    show(as_json, values, text)
    return code
