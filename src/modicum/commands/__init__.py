"""Commands, each a function of its arguments that gives the exit code (see help.toml)."""

from typing import Any

from modicum.options import show


def printed(as_json: bool, values: Any, text: str, code: int = 0) -> int:
    """Print an outcome, for scripts or for people, and give the exit code."""
    show(as_json, values, text)
    return code
