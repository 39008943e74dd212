"""Commands, each a function of its arguments that gives the exit code (see help.toml)."""

from typing import Any

from modicum.options import HELP, Parser, show

TYPES: dict[str, dict[str, Any]] = {"count": {"type": int}, "number": {"type": float}}


def parser(name: str) -> Parser:
    """The parser of a command, with the arguments that help.toml has of it."""
    made, told = Parser(name), HELP["commands"][name]
    if told.get("sources"):  # that `train.settings` starts from
        sources, after = made.add_mutually_exclusive_group(), "; options override"
        sources.add_argument("--config", metavar="FILE", help=f"TOML file with settings{after}")
        text = f"settings of a recipe (modicum recipes){after}"
        sources.add_argument("--recipe", metavar="NAME", help=text)
    for flag, given in told.get("arguments", {}).items():
        how: dict[str, Any] = dict(given)
        kind = how.pop("type", "")
        if kind == "folder":
            made.folder(flag, how.pop("help"), **how)
        else:
            made.add_argument(flag, **how, **TYPES.get(kind, {}))
    return made


def printed(as_json: bool, values: Any, text: str, code: int = 0) -> int:
    """Print an outcome, for scripts or for people, and give the exit code."""
    show(as_json, values, text)
    return code
