"""Updates: what of a model trains.

To add one: a file with a frozen dataclass (see `base.Update`), an entry in UPDATES. The
contract suite (tests/test_updates.py) picks it up.
"""

from __future__ import annotations

from modicum import spec
from modicum.types import UserError
from modicum.updates.base import Prepared, Selection, Update
from modicum.updates.dense import First, Full, Last, Layers, Middle, Parts
from modicum.updates.lora import Lora

UPDATES: dict[str, type] = {
    cls.name: cls for cls in (Full, First, Last, Middle, Layers, Parts, Lora)
}

__all__ = ["UPDATES", "Prepared", "Selection", "Update", "parse"]


def parse(text: str) -> Update:
    """The update that an expression such as `last(1) + parts(norm)` names."""
    made = spec.build("update", text, UPDATES)
    if not isinstance(made, Update):
        raise UserError(f"{text!r} is not an update")
    return made
