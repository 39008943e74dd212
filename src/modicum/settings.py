"""How settings are checked, wherever they come from, what other programs call them, and which of
them a resumed run may change.

A name that no setting has is answered with the table where it belongs, with what it is here if TRL,
verl, transformers or PEFT have it (elsewhere.txt), or else with the nearest one. Every setting says
where it is declared what resume may do:

free     it may change: nothing that is trained depends on it
digits   it may, and last digits change: the same sums are added in another order
length   it may where nothing in the run follows its length
member   its arguments may, as with digits; which member of its kind it names may not
fixed    it may not: the run would be another one

A setting that is `chosen` has a value (0, None) that leaves it to the program. It is written `auto`,
on the command line, in TOML and in Python alike; a run's own file has what was chosen."""

import codecs
import dataclasses
import json
import os
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from modicum import disk
from modicum.limits import check_limits
from modicum.spec import check, nearest, short
from modicum.types import Frozen, UserError

C = TypeVar("C")
Resume = Literal["free", "digits", "length", "member", "fixed"]
AUTO = "auto"


def _setting(resume: Resume) -> Callable[[Any], Any]:
    return lambda default: dataclasses.field(default=default, metadata={"resume": resume})


free, digits, length, member, fixed = map(_setting, typing.get_args(Resume))


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


class Settings(Frozen):
    """Base of a config: unknown names and values of other types are UserErrors."""

    def __new__(cls, *values: Any, **named: Any) -> Self:
        for name in named:
            if name not in _hints(cls):
                hint = elsewhere(name, places(cls)) or nearest(name, _hints(cls))
                raise UserError(f"{cls.__name__}: unknown setting {name!r}; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
                value = from_mapping(typing.cast(type, hint), value, name)
            object.__setattr__(self, name, checked(type(self), name, name, value))
        check_limits(self)


@lru_cache(maxsize=1)
def _table() -> Mapping[str, tuple[str, str, str]]:
    """Setting, value and note of every name in elsewhere.txt; a setting "" has only the note."""
    found: dict[str, tuple[str, str, str]] = {}
    lines = Path(__file__).with_name("elsewhere.txt").read_text(encoding="utf-8").splitlines()
    for place, names, note in (line.split("|") for line in lines[1:]):
        setting, _, value = place.strip().partition(" = ")
        found |= dict.fromkeys(names.split(), (setting, value, note.strip()))
    return found


@lru_cache(maxsize=64)
def _hints(cls: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(typing.cast(Any, cls))}


def checked(cls: type, name: str, what: str, value: Any) -> Any:
    """The value of a field as its type, or `auto`, asks for; UserError that begins with `what`."""
    entry = typing.cast(Any, cls).__dataclass_fields__[name]
    if AUTO not in entry.metadata:
        return check(what, value, _hints(cls)[name])
    if is_auto(entry, value):
        return entry.metadata[AUTO]
    try:
        return check(what, value, _hints(cls)[name])
    except UserError as error:
        raise UserError(f"{error} ({AUTO} leaves it to the program)") from None


def from_mapping(
    cls: type[C], values: Mapping[str, Any], where: str, within: Mapping[str, str] | None = None
) -> C:
    """The config `cls` from nested tables; unknown keys and wrong types are UserErrors.
    `where` (a file) begins them; `within` are the `places` of the whole config."""
    hints, within = _hints(cls), places(cls) if within is None else within
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            hint = elsewhere(key, within) or nearest(str(key), hints)
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {key} must be a table")
            section = typing.cast(type, hints[key])
            made[key] = from_mapping(section, value, f"{where}: {key}", within)
        else:
            made[key] = checked(cls, key, f"{where}: {key}", value)
    try:
        return cls(**made)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; a missing or broken file is a UserError."""
    path = path.expanduser()
    with disk.reading(path, f"there is no config file {path}"):
        raw = path.read_bytes()
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or (raw[2:] and 0 in raw[:2]):
        raise UserError(f"{path} is in UTF-16; TOML is UTF-8: save it as that")
    try:
        return tomllib.loads(re.sub(r"\r\n?", "\n", raw.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line} is not in UTF-8; save the file as that") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


def tables(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings by flat names, or sections, as the tables of `cls`; UserError for unknown ones."""
    at = places(cls)
    flat = dict.fromkeys(at, "")
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in at:
            table = found if not at[name] else found.setdefault(at[name], {})
            table[name] = value
        elif name in at.values():
            given = vars(value) if dataclasses.is_dataclass(value) else value
            if not isinstance(given, Mapping):
                raise UserError(f"{where}: {name} must be a dict, not {short(value)}")
            found[name] = {**given, **found.get(name, {})}
        else:
            hint = elsewhere(name, flat) or nearest(name, at)
            raise UserError(f"{where}: unknown setting {name!r}; {hint}")
    return found


def places(cls: type) -> dict[str, str]:
    """The section ("" for none) of every setting."""
    found: dict[str, str] = {}
    for name, hint in _hints(cls).items():
        inner = _hints(typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else None
        found |= {name: ""} if inner is None else dict.fromkeys(inner, name)
    return found


def elsewhere(name: str, at: Mapping[str, str], option: bool = False) -> str:
    """What an unknown name means here: a setting of another table or program; "" if nothing."""
    plain = str(name).lstrip("-").rpartition(".")[2].replace("-", "_").lower()
    setting, value, note = (plain, "", "") if plain in at else _table().get(plain, ("", "", ""))
    shown = setting.replace("_", "-") if option else setting
    if shown not in at:
        return "" if setting else note
    if setting == plain and not option:
        return f"it belongs to [{at[setting]}]" if at[setting] else "it belongs above all tables"
    text = f"--{shown}" if option else shown
    if value:
        text += f" {value!r}" if option else f" = {value!r}"
    if at[shown]:
        text += f" in [{at[shown]}]"
    return f"did you mean {text}?" + (f" ({note})" if note else "")


def to_toml(config: Any, above: str = "") -> str:
    """A config or nested tables as TOML; None in a config is left out (it is the default)."""
    plain = isinstance(config, Mapping)
    lines = tables = ""
    for name, value in (config if plain else vars(config)).items():
        if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
            tables += f"\n[{above}{name}]\n{to_toml(value, f'{above}{name}.')}"
        elif plain or value is not None:
            lines += f"{name} = {toml_value(value)}\n"
    return lines + tables


def toml_value(value: Any) -> str:
    """A text, path, number, switch or list of them in TOML."""
    # The same in JSON, but for pairs of escapes (not needed) and DEL.
    return json.dumps(value, ensure_ascii=False, default=os.fspath).replace("\x7f", "\\u007f")
