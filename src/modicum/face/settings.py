"""Settings by their flat names, as the command line's options have them, to a config."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from typing import Any

from modicum.spec import nearest
from modicum.types import UserError


def tables(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` as the nested tables of the dataclass `cls`; UserError for unknown names."""
    places = _places(cls)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in places:
            raise UserError(f"{where}: unknown setting {name!r}; {nearest(name, places)}")
        table = found if not places[name] else found.setdefault(places[name], {})
        table[name] = _plain(value)
    return found


def _places(cls: type) -> dict[str, str]:
    """The section ("" for none) of every setting."""
    found: dict[str, str] = {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            section = typing.cast(Any, hint)
            found |= {field.name: name for field in dataclasses.fields(section)}
        else:
            found[name] = ""
    return found


def _plain(value: Any) -> Any:
    """A path as text, and a number of numpy as Python's own."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") and not getattr(value, "ndim", 1) else value
