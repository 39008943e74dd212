"""`modicum runs`."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum import runs, status
from modicum.options import Parser, show
from modicum.settings import places
from modicum.spec import nearest
from modicum.types import UserError

EXAMPLES = """
modicum runs                                  # all under runs/, the newest last
modicum runs --sort accuracy --where task=gsm8k --where last
modicum runs studies/tiny --cells --columns name,learning_rate,accuracy
modicum runs runs/full-seed0 runs/last-1-seed0   # side by side: what differs, what came of it
modicum runs --json
"""
COLUMNS = ("name", "state", "steps", "model", "task", "update", "accuracy", "seconds", "memory")
COLUMNS += ("date",)
LEAST = ("memory", "seconds", "date", "model", "task", "update", "steps")
"""What a narrow terminal does without, in this order."""
RESULTS = ("state", "steps", "accuracy", "reward/mean", "seconds", "memory", "date")
SEARCHED = ("name", "state", "model", "task", "update", "reward", "objective")


@dataclass(frozen=True)
class Options:
    """What to list."""

    sort: str = "date"
    """A column or setting; the greatest comes last."""
    where: tuple[str, ...] | str = ()
    """`NAME=VALUE` of a column or setting, or a text that stands in it; again for more."""
    columns: str = ""
    """Names of columns and settings with commas between; by default what the terminal holds."""
    cells: bool = False
    """Also the runs within studies."""


def run(args: list[str]) -> int:
    """List runs, or show some side by side."""
    parser = Parser("runs", "List, sort and search runs, or show some side by side.", EXAMPLES)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="where to look; runs/")
    found, options = parser.options(args, Options, "list")
    folders = [Path(name) for name in found.folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    chosen = bool(folders) and all(map(runs.is_run, folders))
    roots = folders or [Path("runs")]
    places = {p: root for root in roots for p in status.find(root, options.cells)}
    rows = [values for p, root in places.items() if (values := _read(p, root)) is not None]
    wanted = (options.where,) if isinstance(options.where, str) else options.where
    rows = [row for row in rows if all(_matches(row, text) for text in wanted)]
    if not chosen:
        rows.sort(key=lambda row: _order(_value(row, options.sort)))
    if found.json or not rows:
        none = "there are no such runs here; modicum train begins one under runs/"
        show(found.json, rows, none)
    elif chosen:
        _side_by_side(rows)
    else:
        _list(rows, [name for name in options.columns.split(",") if name])
    return 0


def _read(place: Path, root: Path) -> dict[str, Any] | None:
    """What is known of a run, by its place under a folder; of a broken one that it is."""
    name = str(place.relative_to(root)) if place != root else place.name
    try:
        return status.Status(place).values | {"name": name}
    except UserError as error:
        print(f"note: {error}", file=sys.stderr)
        return None


def _value(row: Mapping[str, Any], name: str) -> Any:
    from modicum.config import TrainConfig

    if name not in row and name not in places(TrainConfig):
        raise UserError(f"runs: nothing is called {name!r}; {nearest(name, row)}")
    return row.get(name)


def _matches(row: Mapping[str, Any], text: str) -> bool:
    """Whether a run is as `NAME=VALUE` says, or has the text somewhere."""
    found = re.match(r"([\w/.-]+)=(.*)", text)
    if found is None:
        return any(text in str(row.get(name, "")) for name in SEARCHED)
    value, wanted = _value(row, found[1]), found[2]
    try:
        return str(value) == wanted or float(value) == float(wanted)
    except (TypeError, ValueError):
        return False


def _order(value: Any) -> tuple[int, Any]:
    """What has no value comes first, then numbers, then texts."""
    number = isinstance(value, int | float)
    return (0, 0) if value is None else (1, value) if number else (2, str(value))


def _text(row: Mapping[str, Any], name: str, narrow: bool = False) -> str:
    from modicum.report import numbers as n

    value = _value(row, name)
    if name == "steps":
        return f"{row['done']}/{value}"
    if name == "accuracy":
        band = "" if row["low"] is None else " \n"[narrow] + n.limits(row["low"], row["high"])
        return n.percent(row["baseline"]) + n.ARROW + n.percent(value) + band
    shown = {"memory": n.memory, "seconds": n.decimal, "date": lambda text: text[:16]}
    if value is None or name in shown:
        return shown.get(name, lambda _: n.NONE)(value)
    return n.general(value) if isinstance(value, float) else str(value)


def _list(rows: Sequence[Mapping[str, Any]], asked: Sequence[str]) -> None:
    """A table of runs as wide as the terminal; what all share is said once."""
    from modicum.report import tables

    heads, width = list(asked or COLUMNS), tables.terminal().width
    cells = [[_text(row, name, width < 130) for name in heads] for row in rows]
    alike = [k for k, texts in enumerate(zip(*cells, strict=True)) if len(set(texts)) == 1]
    same = [k for k in alike if heads[k] in ("model", "task", "update") and len(rows) > 1]
    shown = [k for k in range(len(heads)) if k not in same or asked]
    heads, cells = [heads[k] for k in shown], [[line[k] for k in shown] for line in cells]
    kept = tables.fitted(heads, cells, width, () if asked else LEAST)
    said = [f"{COLUMNS[k]} {rows[0][COLUMNS[k]]}" for k in same if not asked]
    caption = "; ".join([f"{len(rows)} runs", "accuracy (%): base → trained, or newest", *said])
    lines = [[line[k] for k in kept] for line in cells]
    tables.print_table(tables.terminal_table([heads[k] for k in kept], lines, caption))


def _side_by_side(rows: Sequence[Mapping[str, Any]]) -> None:
    """The settings in which runs differ (one: from the defaults), and what came of each."""
    from modicum.config import TrainConfig
    from modicum.report import tables
    from modicum.resuming import settings

    usual = {name.rpartition(".")[2]: value for name, _, value in settings(TrainConfig())}
    names = [name for name in usual if name not in ("out", "steps")]
    lines = [(name, [_text(row, name) for row in rows]) for name in names]
    one = [_text(usual, name) for name in names] if len(rows) == 1 else [""] * len(names)
    differ = [
        [name, *texts]
        for (name, texts), default in zip(lines, one, strict=True)
        if len({*texts, *([default] if len(rows) == 1 else [])}) > 1
    ]
    results = [[name, *(_text(row, name, narrow=True) for row in rows)] for name in RESULTS]
    caption = "problem by problem: modicum compare " + " ".join(row["folder"] for row in rows[:2])
    heads = ["", *(row["name"] for row in rows)]
    tables.print_table(tables.terminal_table(heads, [*differ, *results], caption, wrap=True))
