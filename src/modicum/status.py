"""How runs stand, read from their folders; no torch."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modicum import disk, runs
from modicum.config import read_toml
from modicum.stopping import AT_THE_ENDS
from modicum.types import FolderError, UserError

STUDY = "study.toml"
TAIL = 2**18  # bytes of the end of a file


class Status:
    """A run folder, empty where it has no file; UserError for a broken one (docs/runs.md has `state`).
    `values` is what lists show: what came of it, and every setting by its own name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tables = read_toml(runs.open_run(folder).folder / "config.toml")
        files = (folder / f"{name}.jsonl" for name in ("metrics", "evaluations"))
        lines = (runs.read_lines(file, optional=True) for file in files)
        self.metrics, evaluations = ([line for line in found if "step" in line] for found in lines)
        files = (folder / name for name in ("result.json", runs.FAILED, "environment.json"))
        result, failed, began = (runs.read_object(file, optional=True) for file in files)
        untrained = result.get("nothing_trained")
        if result:
            self.state = "untrained" if untrained else "finished"
        else:
            self.state = "running" if _held(folder) else "failed" if failed else "interrupted"
        self.why = str(untrained or result.get("stopped") or failed.get("error", ""))
        self.done = int(self.metrics[-1]["step"]) + 1 if self.metrics else 0
        self.within = [entry for entry in evaluations if entry.get("name") not in AT_THE_ENDS]
        ends = {entry.get("name"): entry for entry in evaluations}
        base = result.get("base") or ends.get("base") or {}
        held = result.get("trained") or ends.get("trained") or (self.within or [{}])[-1]
        last = self.metrics[-1] if self.metrics else {}
        written = time.localtime((folder / "config.toml").stat().st_mtime)
        self.values: dict[str, Any] = {
            **{"name": folder.name, "folder": str(folder), "state": self.state, "done": self.done},
            **{"baseline": base.get("accuracy")},
            **{name: held.get(name) for name in ("accuracy", "low", "high")},
            "reward/mean": last.get("reward/mean"),
            "seconds": sum(entry.get("time/step_seconds", 0) for entry in self.metrics),
            "memory": result.get("peak_memory_bytes") or last.get("memory/peak_bytes"),
            "date": began.get("date") or time.strftime("%Y-%m-%d %H:%M:%S", written),
        }
        self.values["steps"] = 0  # of a config that has none
        for name, value in tables.items():
            self.values |= value if isinstance(value, dict) else {name: value}

    @property
    def so_far(self) -> str:
        """How far it is, in words."""
        of, reward = self.values["steps"], self.values["reward/mean"]
        logged = "" if reward is None else f", reward {reward:.2f}"
        return f"step {self.done}{f' of {of}' if of else ''}{logged}"

    def last(self, name: str, count: int) -> list[dict[str, Any]]:
        """The last lines of a file, read from its end alone."""
        if not (path := self.folder / name).exists():
            return []
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL)
            file.seek(start)
            # The first may be the rest of a line, the last is empty or being written.
            lines = file.read().split(b"\n")[start > 0 : -1][-count:]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error})") from None


def find(folder: Path, cells: bool = False) -> Iterator[Path]:
    """The run folders under one, itself too; those of studies only with `cells`."""
    for place, below, files in os.walk(folder):
        if is_run := runs.is_run(Path(place)):
            yield Path(place)
        stop = is_run or (STUDY in files and not cells)
        below[:] = [] if stop else sorted(name for name in below if not name.startswith("."))


def _held(folder: Path) -> bool:
    try:
        disk.check_free(folder)
    except FolderError:
        return True
    return False
