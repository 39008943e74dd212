"""Data sets from the Hugging Face hub or its local copy, read when they are first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from modicum.hub import silence
from modicum.tasks.readers import Record
from modicum.types import UserError

SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder


def read(
    task: str,
    name: str,
    config: str | None,
    parts: Sequence[str] | None,
    unread: Sequence[str] = (),
) -> dict[str, list[Record]]:
    """The rows of `parts` (None: of all) of the data set `name`; UserError when it cannot be had.

    `name` is one of the hub, or a folder as `datasets` knows them. `task` is the task's name, for
    messages. The columns `unread` are not loaded into memory.
    """
    try:
        library: Any = import_module("datasets")
    except ImportError as error:
        raise UserError(f"{task} needs the package datasets: {error}") from None
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
            wanted = [str(place) if local else name, config]
            loaded = library.load_dataset(*filter(None, wanted))
    # ValueError: offline, and the local copy lacks this configuration.
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        looked = "found" if local else "looked for on the hub and in its local copy"
        why = " ".join(str(error).split())
        why = f"{silent} ({why})" if silent else why
        hint = "" if local else f"; {task}(path='...') takes a local copy"
        raise UserError(f"{task}: the dataset {shown} was {looked}: {why}{hint}") from None
    finally:
        library.config.HF_HUB_OFFLINE = known
    found: dict[str, Any] = dict(loaded if isinstance(loaded, Mapping) else {"": loaded})
    parts = list(found) if parts is None else parts
    for part in parts:
        if part not in found:
            there = ", ".join(map(repr, found))
            raise UserError(f"{task}: the dataset {shown} has no part {part!r}; it has {there}")
    return {part: _records(f"{name} {part}".strip(), found[part], unread) for part in parts}


def _records(origin: str, rows: Any, unread: Sequence[str]) -> list[Record]:
    dropped = [column for column in getattr(rows, "column_names", ()) if column in unread]
    rows = rows.remove_columns(dropped) if dropped else rows
    return [Record(f"{origin}, row {i}", i, row) for i, row in enumerate(rows, start=1)]
