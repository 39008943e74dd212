"""Data sets from the Hugging Face hub or its local copy, read when they are first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modicum.tasks.readers import Record
from modicum.types import UserError


def read(
    task: str, name: str, config: str | None, parts: Sequence[str], unread: Sequence[str] = ()
) -> dict[str, list[Record]]:
    """The rows of `parts` of the data set `name`; UserError when it cannot be had.

    `task` is the task's name, for messages. The columns `unread` are not loaded into memory.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(f"{task} needs the package datasets: {error}") from None
    shown = f"{name} ({config})" if config else name
    try:
        loaded: Any = load_dataset(name, config) if config else load_dataset(name)
    # ValueError: offline, and the local copy lacks this configuration.
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"{task}: the dataset {shown} was looked for on the hub and in its local copy:"
            f" {' '.join(str(error).split())}; {task}(path='...') takes a local file or folder,"
            " and with HF_HUB_OFFLINE=1 only a local copy is looked for"
        ) from None
    for part in parts:
        if part not in loaded:
            raise UserError(f"{task}: the dataset {shown} has no part {part!r}")
    return {part: _records(f"{name} {part}", loaded[part], unread) for part in parts}


def _records(origin: str, rows: Any, unread: Sequence[str]) -> list[Record]:
    dropped = [column for column in getattr(rows, "column_names", ()) if column in unread]
    rows = rows.remove_columns(dropped) if dropped else rows
    return [Record(f"{origin}, row {i}", i, row) for i, row in enumerate(rows, start=1)]
