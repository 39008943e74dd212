"""Problems from a data file: JSONL, JSON, CSV, TSV or Parquet, checked row by row.

Nothing is dropped silently: a row that cannot be read is a record with a `fault` that names
its file and line, and asking for a value of it raises that. What breaks a file beyond one
row (its encoding, its brackets) stops the reading. Blank lines hold nothing and are the one
thing that is passed over.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from modicum.spec import nearest
from modicum.types import UserError


@dataclass(frozen=True)
class Record:
    """One row: where it stands (`problems.jsonl, line 7`), its number from 1, its values.

    `fault` is what is wrong with a row that could not be read at all.
    """

    where: str
    number: int
    values: Mapping[str, Any]
    fault: str | None = None


def read(path: str) -> list[Record]:
    """All rows of the file, by the ending of its name; UserError when there are none."""
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise UserError(f"{path}: files end in one of {', '.join(READERS)}")
    try:
        records = list(READERS[suffix](path))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not records:
        raise UserError(f"{path} holds no rows")
    return records


def find(task: str, folder: Path, part: str) -> str:
    """The one file of `folder` for `part` ("train", "test")."""
    found = sorted(str(p) for p in folder.glob(f"*{part}*") if p.suffix.lower() in READERS)
    if len(found) == 1:
        return found[0]
    have = f"has {len(found)} ({', '.join(found)})" if found else "has none"
    ends = ", ".join(READERS)
    raise UserError(f"{task}: {folder} must hold one *{part}* file ({ends}); it {have}")


def columns(records: Sequence[Record]) -> set[str]:
    """The names that occur in at least one row."""
    return {name for record in records for name in record.values}


def require_column(path: str, records: Sequence[Record], *names: str) -> str:
    """The first of `names` that is a column; UserError with the nearest when there is none.

    When no row could be read the first name is taken: the rows' own faults say more.
    """
    known = columns(records)
    found = next((name for name in names if name in known), None)
    if found is None and known:
        listed = " or ".join(map(repr, names))
        raise UserError(f"{path} has no column {listed}; {nearest(names[0], known)}")
    return found or names[0]


def text(record: Record, *columns: str) -> str:
    """The text in the first of `columns` that is there, without outer blanks; UserError unless
    it is one and not empty."""
    column = next((name for name in columns if name in record.values), columns[0])
    value = _value(record, column)
    if not isinstance(value, str):
        raise UserError(f"{record.where}: {column!r} must be a text, not {_short(value)}")
    return _not_empty(record, column, value)


def answer(record: Record, column: str) -> str:
    """The answer in `column` as text: 5 and 5.0 give '5'; UserError for lists and such."""
    value = _value(record, column)
    if isinstance(value, str):
        return _not_empty(record, column, value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        # An exponent or a trailing .0 is how the file was written, not what was asked.
        if not math.isfinite(value):
            raise UserError(f"{record.where}: {column!r} is not a finite number: {value}")
        return str(int(value)) if value == int(value) else f"{Decimal(str(value)):f}"
    raise UserError(f"{record.where}: {column!r} must be a text or a number, not {_short(value)}")


def number(record: Record, column: str) -> float:
    """The number in `column`, which a CSV file holds as text; UserError unless finite."""
    value = _value(record, column)
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{record.where}: {column!r} must be a number, not {_short(value)}")
    return found


def _value(record: Record, column: str) -> Any:
    if record.fault is not None:
        raise UserError(record.fault)
    if column not in record.values:
        raise UserError(f"{record.where}: {column!r} is missing")
    value = record.values[column]
    if value is None:
        raise UserError(f"{record.where}: {column!r} is null")
    return value


def _not_empty(record: Record, column: str, value: str) -> str:
    if not value.strip():
        raise UserError(f"{record.where}: {column!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{record.where}: {column!r} holds half a character") from None
    return value.strip()


def _short(value: object) -> str:
    kinds: dict[type, str] = {list: "a list", dict: "an object", bool: "true or false"}
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"{kinds[type(value)]} ({shown})" if type(value) in kinds else shown


def _load_text(path: str) -> str:
    """The text of a UTF-8 file without its byte order mark; UserError names a bad line."""
    raw = Path(path).read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None


def _record(path: str, line: int, value: object) -> Record:
    where = f"{path}, line {line}"
    if not isinstance(value, dict):
        fault = f"{where}: must be an object such as {{...}}, not {_short(value)}"
        return Record(where, line, {}, fault)
    return Record(where, line, value)


def _read_jsonl(path: str) -> Iterator[Record]:
    # Not splitlines(): it also cuts at U+2028, which JSON allows inside a text.
    for line, content in enumerate(_load_text(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            value = _parse(path, line, line - 1, lambda content=content: json.loads(content))
        except UserError as error:
            yield Record(f"{path}, line {line}", line, {}, str(error))
        else:
            yield _record(path, line, value)


def _read_json(path: str) -> Iterator[Record]:
    """The objects of a list, one by one, so that each knows the line where it begins."""
    content = _load_text(path)
    decoder = json.JSONDecoder()
    if not content.strip():
        return
    place = _skip(content, 0)
    if content[place] != "[":
        raise UserError(f"{path}: must be a list of objects (one object a line: name it .jsonl)")
    place, line, counted = _skip(content, place + 1), 1, 0
    while content[place : place + 1] != "]":
        line, counted = line + content.count("\n", counted, place), place
        value, place = _parse(path, line, 0, lambda at=place: decoder.raw_decode(content, at))
        yield _record(path, line, value)
        place = _skip(content, place)
        if content[place : place + 1] == ",":
            place = _skip(content, place + 1)
            closed = content[place : place + 1] != "]"
        else:
            closed = content[place : place + 1] == "]"
        if not closed:
            where = f"{path}, line {line}"
            raise UserError(f"{where}: what follows this object must be a comma or the final ]")
    if content[place + 1 :].strip():
        raise UserError(f"{path}: there is more after the list")


def _skip(content: str, place: int) -> int:
    while content[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place


def _parse(path: str, line: int, above: int, parse: Callable[[], Any]) -> Any:
    """What `parse` gives; UserError with the line.

    The row begins at `line`; `parse` does not see the first `above` lines of the file.
    """
    try:
        return parse()
    except json.JSONDecodeError as error:
        where = f"{path}, line {above + error.lineno}"
        raise UserError(f"{where}: not JSON ({error.msg} at character {error.colno})") from None
    except (ValueError, RecursionError):
        problem = "a number with too many digits, or too deeply nested"
        raise UserError(f"{path}, line {line}: not JSON ({problem})") from None


def _read_csv(path: str, delimiter: str = ",") -> Iterator[Record]:
    content = io.StringIO(_load_text(path), newline="")
    reader = csv.reader(content, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1  # a quoted text may run over lines: a row stands where it begins
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: not CSV ({error})") from None
        if header is None and cells:
            header = [name.strip() for name in cells]
            twice = {name for name in header if header.count(name) > 1}
            if twice:
                raise UserError(f"{path}, line {line}: column {min(twice)!r} stands there twice")
        elif header is not None and cells:
            yield _csv_record(f"{path}, line {line}", line, header, cells)
        line = reader.line_num + 1


def _csv_record(where: str, line: int, header: list[str], cells: list[str]) -> Record:
    if len(cells) != len(header):
        quoted = "; a text with a comma needs quotes" if len(cells) > len(header) else ""
        fault = f"{where}: {len(cells)} values for {len(header)} columns{quoted}"
        return Record(where, line, {}, fault)
    return Record(where, line, dict(zip(header, cells, strict=True)))


def _read_parquet(path: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowException as error:
        raise UserError(f"{path} is not Parquet: {' '.join(str(error).split())}") from None
    for line, values in enumerate(table.to_pylist(), start=1):
        yield Record(f"{path}, row {line}", line, values)


READERS: dict[str, Callable[[str], Iterable[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}
