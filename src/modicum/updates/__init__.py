"""Updates: what of a model trains.

To add one: a file with a frozen dataclass (see `base.Update`), an entry in UPDATES. The
contract suite (tests/test_updates.py) picks it up.
"""

from __future__ import annotations

from modicum import spec
from modicum.types import UserError
from modicum.updates.base import Method, Placed, Prepared, Selection, Update
from modicum.updates.dense import First, Full, Last, Layers, Middle, Parts
from modicum.updates.lisa import Lisa
from modicum.updates.lora import Lora

UPDATES: dict[str, type] = {
    cls.name: cls for cls in (Full, First, Last, Middle, Layers, Parts, Lora, Lisa)
}

__all__ = ["UPDATES", "Method", "Placed", "Prepared", "Selection", "Update", "parse", "select"]


def parse(text: str) -> Update:
    """The update that an expression such as `last(1) + parts(norm)` names."""
    made = spec.build("update", text, UPDATES)
    if not isinstance(made, Update):
        raise UserError(f"{text!r} is not an update")
    return made


select = parse  # for use outside: select("last(5) + parts(norm)").apply(model)
