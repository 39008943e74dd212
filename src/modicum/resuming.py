"""Which settings a resumed run may change. Every setting says it where it is declared.

free     it may: nothing that is trained depends on it
digits   it may, and last digits change: the same sums are added in another order
length   it may where nothing in the run follows its length
fixed    it may not: the run would be another one

A setting that is `chosen` has a value (0, None) that leaves it to the program. It is written `auto`,
on the command line, in TOML and in Python alike; a run's own file has what was chosen.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

C = TypeVar("C")
Resume = Literal["free", "digits", "length", "fixed"]
AUTO = "auto"


def _setting(resume: Resume) -> Callable[[Any], Any]:
    return lambda default: dataclasses.field(default=default, metadata={"resume": resume})


free, digits, length, fixed = map(_setting, typing.get_args(Resume))


def chosen(setting: Any) -> Any:
    """Make a setting one whose default leaves it to the program."""
    told = {**setting.metadata, AUTO: setting.default}
    return dataclasses.field(default=setting.default, metadata=told)


def is_auto(entry: Any, value: Any) -> bool:
    """Whether a value of a field leaves it to the program."""
    default = entry.metadata.get(AUTO, dataclasses.MISSING)
    if default is dataclasses.MISSING or isinstance(value, str):
        return value == AUTO and default is not dataclasses.MISSING
    return type(value) is type(default) and value == default


def kept(config: C, past: C) -> C:
    """The config with what `past` has for every setting that is left to the program."""
    found = {}
    for entry in dataclasses.fields(config):  # type: ignore[arg-type]
        value, before = (getattr(of, entry.name) for of in (config, past))
        if dataclasses.is_dataclass(value):
            found[entry.name] = kept(value, before)
        elif is_auto(entry, value):
            found[entry.name] = before
    return dataclasses.replace(config, **found)  # type: ignore[type-var]


def settings(config: Any) -> Iterator[tuple[str, Resume, Any]]:
    """Every setting: its name with its table (`batch.micro_batch`), what resume may do, its value."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            for name, resume, inner in settings(value):
                yield f"{entry.name}.{name}", resume, inner
        else:
            yield entry.name, entry.metadata["resume"], value
