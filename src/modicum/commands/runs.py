"""`modicum runs`, `compare` and `watch`: what runs come to."""

import re
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modicum import runs, status
from modicum.commands import printed
from modicum.config import TrainConfig
from modicum.settings import settings
from modicum.spec import nearest
from modicum.status import Status
from modicum.types import UserError

COLUMNS = ("name", "state", "steps", "model", "task", "update", "accuracy", "seconds", "memory")
COLUMNS += ("date",)
# What a narrow terminal does without, in this order.
LEAST = ("memory", "seconds", "date", "model", "task", "update", "steps")
RESULTS = ("state", "steps", "accuracy", "reward/mean", "seconds", "memory", "date")
SEARCHED = ("name", "state", "model", "task", "update", "reward", "objective")
USUAL = {name.rpartition(".")[2]: value for name, _, value in settings(TrainConfig())}
Row = Mapping[str, Any]  # `Status.values` of a run


def run(found: Namespace) -> int:
    """List runs, or show some side by side."""
    roots = [Path(name) for name in found.folders]
    if missing := [root for root in roots if not root.is_dir()]:
        raise UserError(f"there is no folder {missing[0]}")
    places = {p: root for root in roots or [Path("runs")] for p in status.find(root, found.cells)}
    rows = [row for place, root in places.items() if (row := _read(place, root))]
    rows = [row for row in rows if all(_matches(row, text) for text in found.where)]
    if not (side_by_side := bool(roots) and all(map(runs.is_run, roots))):
        rows.sort(key=lambda row: _order(_value(row, found.sort)))
    if found.json or not rows:
        told = "there are no such runs; modicum train begins one under runs/"
        return printed(found.json, rows, told)
    if side_by_side:
        _side_by_side(rows)
    else:
        _list(rows, [name.strip() for name in (found.columns or "").split(",") if name])
    return 0


def _read(place: Path, root: Path) -> Row | None:
    """What is known of a run, by its place under a folder; a broken one is told of."""
    try:
        name = str(place.relative_to(root)) if place != root else place.name
        return status.Status(place).values | {"name": name}
    except UserError as error:
        print(f"note: {error}", file=sys.stderr)
        return None


def _value(row: Row, name: str) -> Any:
    if name not in row and name not in USUAL:
        raise UserError(f"runs: nothing is called {name!r}; {nearest(name, row)}")
    return row.get(name)


def _matches(row: Row, text: str) -> bool:
    """Whether a run is as `NAME=VALUE` says, or has the text somewhere."""
    if (found := re.match(r"([\w/.-]+)=(.*)", text)) is None:
        return any(text in str(row.get(name, "")) for name in SEARCHED)
    value, wanted = _value(row, found[1]), found[2]
    try:
        return str(value) == wanted or float(value) == float(wanted)
    except (TypeError, ValueError):
        return False


def _order(value: Any) -> tuple[int, Any]:
    number = isinstance(value, int | float)
    return (0, 0) if value is None else (1, value) if number else (2, str(value))


def _text(row: Row, name: str) -> str:
    from modicum.report import words as n

    value = _value(row, name)
    if name == "steps":
        return f"{row['done']}/{value}"
    if name == "accuracy":
        band = "" if row["low"] is None else "\n" + n.interval(row["low"], row["high"], n.percent)
        return n.percent(row["baseline"]) + n.ARROW + n.percent(value) + band
    if value is None:
        return n.NONE
    shown = {"memory": n.memory, "seconds": n.decimal, "date": lambda text: text[:16]}
    return shown.get(name, n.general if isinstance(value, float) else str)(value)


def _list(rows: Sequence[Row], asked: Sequence[str]) -> None:
    from modicum.report import tables

    texts = {name: [_text(row, name) for row in rows] for name in asked or COLUMNS}
    alike = [name for name in ("model", "task") if not asked and len(set(texts[name])) == 1]
    heads = [name for name in texts if name not in alike]
    cells = list(zip(*(texts[name] for name in heads), strict=True))
    caption = f"{len(rows)} run{'s' * (len(rows) != 1)}; accuracy (%): base → trained, or newest"
    caption += "".join(f"; {name} {texts[name][0]}" for name in alike)
    screen, least = tables.terminal(), () if asked else LEAST
    screen.print(tables.terminal_table(heads, cells, caption, least=least, width=screen.width))


def _side_by_side(rows: Sequence[Row]) -> None:
    """The settings in which runs differ (one: from the defaults), and what came of each."""
    from modicum.report import tables

    compared = [*rows, *([USUAL] if len(rows) == 1 else [])]
    names = [name for name in USUAL if name not in ("out", "steps")]
    differ = [name for name in names if len({_text(row, name) for row in compared}) > 1]
    lines = [[name, *(_text(row, name) for row in rows)] for name in (*differ, *RESULTS)]
    caption = f"problem by problem: modicum compare {' '.join(row['folder'] for row in rows[:2])}"
    heads = ["", *(row["name"] for row in rows)]
    tables.terminal().print(tables.terminal_table(heads, lines, caption, wrap=True))


def run_compare(found: Namespace) -> int:
    """Compare two evaluations of the same problems, problem by problem."""
    from modicum.face import compare
    from modicum.face.evaluation import evaluation_of
    from modicum.report.words import filled

    after = evaluation_of(found.after)
    result = compare(found.after, found.before)
    names = {"after": found.after, "before": found.before or f"{found.after} before training"}
    text = filled("compare.txt", **names, evaluation=after, found=result)
    return printed(found.json, {**names, **asdict(result)}, text)


def run_watch(found: Namespace) -> int:
    """Show a run in the terminal until it ends, and write `live.html` in its folder."""
    folder = Path(found.run)

    from rich.live import Live

    from modicum import disk, live
    from modicum.report.tables import terminal

    status, console = Status(folder), terminal()
    with Live(console=console, auto_refresh=False) as shown:
        while not found.json:
            # A run that shows itself writes its own.
            if status.state != "running" or not status.values.get("watch"):
                with suppress(*disk.errors()):
                    live.write(status)
            shown.update(live.view(status, *console.size), refresh=True)
            if found.once or status.state != "running":
                break
            time.sleep(live.SECONDS)
            status = Status(folder)
    return printed(found.json, status.values, f"page: {folder / live.PAGE}")
