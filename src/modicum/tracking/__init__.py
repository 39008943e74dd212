"""The metrics of a run to TensorBoard, Weights & Biases, Trackio or MLflow, by their libraries.

docs/trackers.md says what is logged, and when. A library is imported by the run that uses it."""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from modicum import runs
from modicum.config import Tracking
from modicum.tracking.backends import LIBRARIES, Backend, Start
from modicum.types import UserError

Note = Callable[[str], None]
RECORD = "tracker.json"
# Reasons of the system; a TypeError, say, would be a mistake of ours and is not hidden.
FAULTS = (ImportError, OSError, RuntimeError, ValueError)
MAX_REASON = 300  # characters; a database error quotes its whole statement
# What an evaluation and a result say beside what they found.
SETTINGS = ("step", "num_problems", "samples_per_problem", "temperature", "seed", "steps")


class Tracker(AbstractContextManager["Tracker"]):
    """Passes on what a run logs until its backend fails; a context, failed when an error leaves it."""

    def __init__(self, name: str = "none", note: Note = print, done: int = 0) -> None:
        self.backend: Backend | None = None
        self.name, self.note, self.done = name, note, done

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step has ended; `metrics` is its line of metrics.jsonl."""
        self.done = int(metrics["step"]) + 1
        self._log(numbers(metrics), self.done)

    def evaluated(self, entry: Mapping[str, Any]) -> None:
        """An evaluation has ended; `entry` is its line of evaluations.jsonl."""
        kinds = ((kind, entry.get(kind, {})) for kind in ("pass_at", "maj_at"))
        estimates = {f"{kind}_{k}": found[0] for kind, many in kinds for k, found in many.items()}
        self._log(numbers({**entry, **estimates}, "eval/"), int(entry["step"]) + 1)

    def finish(self, result: Mapping[str, Any], failed: bool = False) -> None:
        """The run has ended, with this result or with none; later calls do nothing."""
        self._log(numbers(result, "result/"), self.done)
        self._call(lambda backend: backend.close(failed))
        self.backend = None

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if values:
            self._call(lambda backend: backend.log(dict(values), step=step))

    def _call(self, call: Callable[[Backend], object]) -> None:
        if (backend := self.backend) is None:
            return
        modules = LIBRARIES[self.name].modules
        if reason := failure(modules, lambda: call(backend)):
            self.note(f"{self.name} failed, and the run goes on without it ({reason})")
            self.backend = None
            failure(modules, lambda: backend.close(True))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish({}, failed=kind is not None)


def check(settings: Tracking) -> None:
    """UserError when the tracker cannot be used here; cheap, so that it can come first."""
    if (name := settings.tracker) == "none":
        return
    library = LIBRARIES[name]
    for module in library.modules:
        if importlib.util.find_spec(module) is None:
            text = f"tracker {name} needs the package {module}, which is not installed"
            raise UserError(f"{text}: pip install 'modicum[{name}]'")
    if settings.tracker_online and not library.has_online:
        raise UserError(f"tracker_online: {name} only writes files; leave it out")
    if settings.tracker_online and library.servers and not any(map(os.getenv, library.servers)):
        servers = " or ".join(library.servers)
        raise UserError(f"tracker_online: {name} takes its server from {servers}; set it")


def open(
    settings: Tracking, run_folder: Path, run_name: str, config: Any, resumed_at: int, note: Note
) -> Tracker:
    """The tracker of a run that begins, or goes on after `resumed_at` steps; UserError if it cannot."""
    if (name := settings.tracker) == "none":
        return Tracker()
    check(settings)
    record, tracker = run_folder / RECORD, Tracker(name, note, resumed_at)
    folder, past = run_folder.absolute(), None
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            past = str(found["id"]) if found["tracker"] == name else None
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{record} is damaged; without it a new run of {name} begins") from None
    start = Start(settings, folder, run_name, hyperparameters(config), past, resumed_at)

    def begin() -> None:
        tracker.backend = backend = LIBRARIES[name].begin(start)
        runs.write_whole(record, json.dumps({"tracker": name, "id": backend.id}) + "\n")

    if reason := failure(LIBRARIES[name].modules, begin):
        hint = f"; without {record} a new run of it begins" if past else ""
        raise UserError(f"tracker {name} cannot begin ({reason}){hint}")
    return tracker


def failure(owners: Sequence[str], call: Callable[[], object]) -> str:
    """Makes a call; why it failed, in a line of bounded length, or nothing.

    A failure is one of FAULTS or what the packages `owners` define; all else is raised."""

    def known() -> tuple[type[BaseException], ...]:
        kind = type(sys.exception())
        own = issubclass(kind, Exception) and kind.__module__.partition(".")[0] in owners
        return (*FAULTS, kind) if own else FAULTS

    try:
        call()
    except UserError:
        raise
    except known() as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_REASON]}"
        return text.removesuffix(": ")
    return ""


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as one with dotted names, `sampling.temperature`; None is left out."""
    return {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in runs.flat(config)
        if value is not None
    }


def numbers(values: Mapping[str, Any], group: str = "") -> dict[str, float]:
    """The finite numbers among `values`, but for settings, with `group` before their names."""
    return {
        group + name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if name not in SETTINGS and math.isfinite(value)
    }
