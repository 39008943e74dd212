"""Which settings a resumed run may change. Every setting says it where it is declared.

free     it may: nothing that is trained depends on it
digits   it may, and last digits change: the same sums are added in another order
length   it may where nothing in the run follows its length
fixed    it may not: the run would be another one
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

Resume = Literal["free", "digits", "length", "fixed"]


def _setting(resume: Resume) -> Callable[[Any], Any]:
    return lambda default: dataclasses.field(default=default, metadata={"resume": resume})


free, digits, length, fixed = map(_setting, typing.get_args(Resume))


def settings(config: Any) -> Iterator[tuple[str, Resume, Any]]:
    """Every setting: its name with its table (`batch.micro_batch`), what resume may do, its value."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            for name, resume, inner in settings(value):
                yield f"{entry.name}.{name}", resume, inner
        else:
            yield entry.name, entry.metadata["resume"], value
