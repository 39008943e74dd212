"""Reading data row by row: JSONL, JSON, CSV, TSV or Parquet, packed or not, or from the hub.

A row that cannot be read is a record with a `fault` that names its file and line. What breaks a
file beyond one row (its encoding, its brackets, rows that run over lines) stops the reading."""

import csv
import importlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from modicum.disk import reading
from modicum.hub import silence
from modicum.types import UserError

PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""What may follow the ending of a file, and what unpacks it."""
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder
PARTS = {"train": "train", "tune": "tune|valid|dev|eval", "test": "test"}
"""Names of a folder's files, at the beginning of a word, by what they are for."""

Names = Sequence[str]  # of parts, of columns


class Record(NamedTuple):
    """One row: where it stands (`problems.jsonl, line 7`), its number from 1, its values."""

    where: str
    number: int
    values: Mapping[str, Any]
    fault: str | None = None  # what is wrong with a row that could not be read at all


def ending(path: str | Path) -> str:
    """The ending of a file's name that says how it is read: `.jsonl` of `A.JSONL.gz`."""
    place = Path(path)
    return (place.with_suffix("") if place.suffix.lower() in PACKED else place).suffix.lower()


def read(path: str) -> list[Record]:
    """All rows of the file, by the ending of its name; UserError when there are none."""
    if ending(path) not in READERS:
        raise UserError(f"{path}: files end in {ENDS}")
    with reading(path):
        records = list(READERS[ending(path)](path, _bytes(path)))
    if not records:
        raise UserError(f"{path} holds no rows")
    return records


def find(task: str, folder: Path) -> dict[str, list[str]]:
    """The files of `folder`, or of `data` in it, by what their names say they are for."""
    names = {path.name: path for place in (folder / "data", folder) for path in place.glob("*")}
    files = sorted(path for path in names.values() if ending(path) in READERS and path.is_file())
    found: dict[str, list[Path]] = {part: [] for part in PARTS}
    for path in files:
        if len(parts := parts_of(path.name)) > 1:
            raise UserError(f"{task}: {path} is named for both {' and '.join(parts)}")
        if parts:
            found[parts[0]].append(path)
    if any((folder / file).is_file() for file in SAVED):
        raise UserError(f"{task}: {folder} was saved by datasets: hub({str(folder)!r}) reads it")
    kinds = {part: {re.sub(r"\d+", "", p.name) for p in paths} for part, paths in found.items()}
    one = "file, or numbered ones that belong together"
    wrong = [(f"one *{part}* {one}", found[part]) for part in found if len(kinds[part]) > 1]
    if not found["train"] + found["test"]:
        needs = f"*train* or *test* files ({ENDS}), perhaps *valid* ones beside them"
        wrong = [(needs, files)]
    for needs, have in wrong:
        listed = ", ".join(path.name for path in have[:5]) + ", ..." * (len(have) > 5) or "none"
        raise UserError(f"{task}: {folder} must hold {needs}; it has {listed}")
    return {part: list(map(str, paths)) for part, paths in found.items() if paths}


def parts_of(name: str) -> list[str]:
    """What a file or part of this name is for; several for one that cannot be told."""
    words = ((part, re.compile(f"(?<![a-z])({word})")) for part, word in PARTS.items())
    return [part for part, word in words if word.search(name.lower())]


def short(value: object) -> str:
    """A value in a message."""
    kinds: dict[type, str] = {list: "a list", dict: "an object", bool: "true or false"}
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"{kinds[type(value)]} ({shown})" if type(value) in kinds else shown


def _bytes(path: str) -> bytes:
    if (packed := PACKED.get(Path(path).suffix.lower())) is None:
        return Path(path).read_bytes()
    import pyarrow as pa

    with pa.input_stream(path, compression=packed) as stream:
        return stream.read()


def _text(path: str, raw: bytes) -> str:
    """The text of a UTF-8 file without its byte order mark; UserError names a bad line."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if raw.startswith(b"\x1f\x8b"):
            raise UserError(f"{path} is packed with gzip: its name must end in .gz") from None
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None


def _record(where: str, number: int, value: object) -> Record:
    if isinstance(value, dict):
        return Record(where, number, value)
    fault = f"{where}: must be an object such as {{...}}, not {short(value)}"
    return Record(where, number, {}, fault)


def _read_jsonl(path: str, raw: bytes) -> Iterator[Record]:
    if _runs_on((text := _text(path, raw)).lstrip()):
        hint = ".jsonl has an object on each line, and a list of objects is named .json"
        raise UserError(f"{path}: its rows run over several lines; {hint}")
    # Not splitlines(): it also cuts at U+2028, which JSON allows inside a text.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            value = _parse(path, content, line - 1)
        except UserError as error:
            yield Record(f"{path}, line {line}", line, {}, str(error))
        else:
            yield _record(f"{path}, line {line}", line, value)


def _runs_on(text: str) -> bool:
    """Whether the first value of JSON lines does not end where its line does."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return text.partition("\n")[0].strip() in ("{", "[", "[{")
    return "\n" in text[:end]


def _read_json(path: str, raw: bytes) -> Iterator[Record]:
    content = _text(path, raw)
    rows = _parse(path, content) if content.strip() else []
    if not isinstance(rows, list):
        raise UserError(f"{path}: must be a list of objects (one object a line: name it .jsonl)")
    for number, value in enumerate(rows, start=1):
        yield _record(f"{path}, row {number}", number, value)


def _parse(path: str, content: str, above: int = 0) -> Any:
    """The value of a JSON text, below so many lines of the file; UserError with the line."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        where = f"{path}, line {above + error.lineno}"
        raise UserError(f"{where}: not JSON ({error.msg} at character {error.colno})") from None
    except (ValueError, RecursionError):
        problem = "a number with too many digits, or too deeply nested"
        raise UserError(f"{path}, line {above + 1}: not JSON ({problem})") from None


def _read_csv(path: str, raw: bytes, delimiter: str = ",") -> Iterator[Record]:
    reader = csv.reader(io.StringIO(_text(path, raw), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1  # a quoted text may run over lines: a row stands where it begins
    try:
        for cells in reader:
            where = f"{path}, line {line}"
            if not header and cells:
                header = _header(where, [name.strip() for name in cells])
            elif cells and len(cells) != len(header):
                quoted = "; a text with a comma needs quotes" * (len(cells) > len(header))
                fault = f"{where}: {len(cells)} values for {len(header)} columns{quoted}"
                yield Record(where, line, {}, fault)
            elif cells:
                yield Record(where, line, dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not CSV ({error})") from None


def _header(where: str, names: list[str]) -> list[str]:
    other = next((sign for sign in ",;\t|" if sign in names[0]), "")
    if len(names) == 1 and other:
        divided = f"the values seem to be divided by {other!r}"
        raise UserError(f"{where}: {divided}; .csv takes commas, .tsv tabs")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{where}: column {min(twice)!r} stands there twice")
    return names


def _read_parquet(path: str, raw: bytes) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(raw)).read()
    except pa.ArrowException as error:
        raise UserError(f"{path} is not Parquet: {' '.join(str(error).split())}") from None
    for line, values in enumerate(table.to_pylist(), start=1):
        yield Record(f"{path}, row {line}", line, values)


READERS: dict[str, Callable[[str, bytes], Iterable[Record]]] = {
    **dict.fromkeys((".jsonl", ".ndjson"), _read_jsonl),
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}
ENDS = f"{', '.join(READERS)}, or one of these and {', '.join(PACKED)}"


def from_hub(
    task: str, name: str, config: str | None, parts: Names | None, unread: Names = ()
) -> dict[str, list[Record]]:
    """The rows of `parts` (None: of all) of a data set, one of the hub or a folder of `datasets`,
    without the columns `unread`; UserError, which begins with `task`, when it cannot be had."""
    library: Any = importlib.import_module("datasets")
    shown = f"{name} ({config})" if config else name
    place, known = Path(name).expanduser(), library.config.HF_HUB_OFFLINE
    local = place.is_dir()
    silent = "" if local else silence()
    library.disable_progress_bars()  # one line of ours says what is read
    try:
        # Or else it asks again and again before it looks at its copies.
        library.config.HF_HUB_OFFLINE = known or bool(silent)
        if any((place / file).is_file() for file in SAVED):
            loaded = library.load_from_disk(str(place))
        else:
            loaded = library.load_dataset(*filter(None, [str(place) if local else name, config]))
    # ValueError: offline, and the local copy lacks this configuration.
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        why = " ".join(str(error).split())
        if not local:
            why = f"{silent} ({why})" if silent else why
            shown = f"{shown} was looked for on the hub and in its local copy"
            why += f"; {task}(path='...') takes a local copy"
        raise UserError(f"{task}: the dataset {shown}: {why}") from None
    finally:
        library.config.HF_HUB_OFFLINE = known
    found: dict[str, Any] = dict(loaded if isinstance(loaded, Mapping) else {"": loaded})
    parts = list(found) if parts is None else parts
    for part in parts:
        if part not in found:
            there = ", ".join(map(repr, found))
            raise UserError(f"{task}: the dataset {shown} has no part {part!r}; it has {there}")
    return {part: _hub_records(f"{name} {part}".strip(), found[part], unread) for part in parts}


def _hub_records(origin: str, rows: Any, unread: Names) -> list[Record]:
    dropped = [column for column in getattr(rows, "column_names", ()) if column in unread]
    rows = rows.remove_columns(dropped) if dropped else rows
    return [Record(f"{origin}, row {i}", i, row) for i, row in enumerate(rows, start=1)]
