"""Values of a data file's rows, by the names of columns, checked one by one.

A name may lead into what a column holds, JSON texts included: `reward_model.ground_truth`,
`prompt.0.content`. A column whose own name has dots comes first. Asking for a value of a row
that cannot be read raises its fault."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from modicum.spec import nearest
from modicum.tasks.readers import Record, short
from modicum.types import UserError

PLACE = re.compile(r"-?[0-9]{1,6}", re.ASCII)
MISSING = object()
LOOKED = 20  # rows whose columns are named when one is missing
DEPTH = 3  # names in a column's name that is shown


def value_at(values: Any, name: str) -> Any:
    """What stands at `name`, or MISSING."""
    found, cut = _step(values, name), len(name)
    while found is MISSING and (cut := name.rfind(".", 0, cut)) > 0:
        inner = _step(values, name[:cut])
        found = MISSING if inner is MISSING else value_at(inner, name[cut + 1 :])
    return found


def _step(values: Any, name: str) -> Any:
    if isinstance(values := opened(values), Mapping):
        return values.get(name, MISSING)
    if isinstance(values, list | tuple) and PLACE.fullmatch(name):
        return values[int(name)] if -len(values) <= int(name) < len(values) else MISSING
    return MISSING


def opened(value: Any) -> Any:
    """The value itself, or what it is as JSON, when it is the text of an object or a list."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def names_in(values: Any, depth: int = DEPTH) -> Iterator[str]:
    """The names of all that is in a row; of a list those of its first."""
    values = opened(values)
    inside = values.items() if isinstance(values, Mapping) else []
    if isinstance(values, list | tuple):
        inside = [("0", values[0])] if values and isinstance(values[0], Mapping) else []
    for name, value in inside:
        below = [f"{name}.{rest}" for rest in names_in(value, depth - 1)] if depth > 1 else []
        yield from below or [str(name)]


def filled(records: Sequence[Record], name: str) -> bool:
    """Whether at least one row has more than null at `name`."""
    found = (value_at(record.values, name) for record in records)
    return any(value is not None and value is not MISSING for value in found)


def require_column(path: str, records: Sequence[Record], *names: str, hint: str = "") -> str:
    """The first of `names` that is a column; UserError with the nearest when there is none. When no
    row could be read the first name is taken: the rows' own faults say more."""
    there = (n for n in names if any(value_at(r.values, n) is not MISSING for r in records))
    found = next(there, None)
    known = {name for record in records[:LOOKED] for name in names_in(record.values)}
    if found is None and known:
        listed = " or ".join(map(repr, names))
        raise UserError(f"{path} has no column {listed}; {nearest(names[0], known)}{hint}")
    return found or names[0]


def key(record: Record, column: str) -> str:
    """What identifies a row, as text; empty without one."""
    return "" if (found := record.values.get(column)) is None else str(found)


def value(record: Record, column: str) -> Any:
    """What stands in `column`; UserError when that is nothing."""
    if record.fault is not None:
        raise UserError(record.fault)
    if (found := value_at(record.values, column)) is MISSING or found is None:
        raise UserError(f"{record.where}: {column!r} is {'null' if found is None else 'missing'}")
    return found


def text(record: Record, *columns: str) -> str:
    """The text in the first of `columns` that is there, without outer blanks; UserError unless
    it is one and not empty."""
    there = (name for name in columns if value_at(record.values, name) is not MISSING)
    column = next(there, columns[0])
    return as_text(record, column, value(record, column))


def as_text(record: Record, column: str, found: Any) -> str:
    """`found`, which stands in `column`, if it is a text that is not empty, else a UserError."""
    if not isinstance(found, str):
        raise UserError(f"{record.where}: {column!r} must be a text, not {short(found)}")
    if not found.strip():
        raise UserError(f"{record.where}: {column!r} is empty")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise UserError(f"{record.where}: {column!r} holds half a character") from None
    return found.strip()


def answers(record: Record, column: str) -> list[str]:
    """The different answers in `column`: one, or those of a list, which may be JSON of texts."""
    found = value(record, column)
    texts = opened(found)
    if isinstance(texts, list) and texts and all(isinstance(item, str) for item in texts):
        found = texts  # not [1, 2], which may be an interval
    if isinstance(found, str) and found.startswith("['"):
        raise UserError(f"{record.where}: {column!r} is a list as Python shows it; write JSON")
    if not isinstance(found, list | tuple):
        return [as_answer(record, column, found)]
    if not found:
        raise UserError(f"{record.where}: {column!r} is an empty list")
    return list(dict.fromkeys(as_answer(record, column, item) for item in found))


def as_answer(record: Record, column: str, found: Any) -> str:
    """An answer that stands in `column` as text: 5 and 5.0 give '5'; UserError for lists and such."""
    if isinstance(found, str):
        return as_text(record, column, found)
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if isinstance(found, float | Decimal):
        # An exponent or a trailing .0 is how the file was written, not what was asked.
        if not math.isfinite(found):
            raise UserError(f"{record.where}: {column!r} is not a finite number: {found}")
        return str(int(found)) if found == int(found) else f"{Decimal(str(found)):f}"
    raise UserError(f"{record.where}: {column!r} must be a text or a number, not {short(found)}")


def level(record: Record, column: str) -> float | None:
    """The number in `column`, which may be a text; None where there is none, finite or UserError."""
    found = value_at(record.values, column)
    if found is MISSING or found is None or str(found).strip().lower() in ("", "nan"):
        return None
    given = value(record, column)
    try:
        found = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{record.where}: {column!r} must be a number, not {short(given)}")
    return found
