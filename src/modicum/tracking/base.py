"""What a tracker's run begins with and does, and which of its failures a run survives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum.config import Tracking
from modicum.types import UserError

# Reasons of the system; a TypeError, say, would be a mistake of ours and is not hidden.
FAULTS = (ImportError, OSError, RuntimeError, ValueError)
MAX_REASON = 300  # characters; a database error quotes its whole statement
# What an evaluation and a result say beside what they found.
SETTINGS = ("step", "num_problems", "samples_per_problem", "temperature", "seed", "steps")


@dataclass(frozen=True)
class Start:
    """What a backend begins with.

    `folder` is the absolute run folder, `config` flat. `past` is the id of a run of the
    tracker that goes on after `resumed_at` steps, or None.
    """

    settings: Tracking
    folder: Path
    name: str
    config: Mapping[str, Any]
    past: str | None
    resumed_at: int

    @property
    def store(self) -> Path:
        """The absolute folder of a store that several runs may share."""
        return Path(self.settings.tracker_folder or self.folder).absolute()


@dataclass(frozen=True)
class Backend:
    """A run of a tracker: `id` finds it again, `log` takes what has one step (`step=`).

    `close` writes what is left and ends the run, as failed or not.
    """

    id: str
    log: Callable[..., object]
    close: Callable[[bool], object]


class LibraryGuard:
    """A context that catches what a library raises when it, disk, network or server fail.

    That is FAULTS and whatever the packages `owners` define; `error` holds it.
    """

    def __init__(self, owners: tuple[str, ...]) -> None:
        self.owners = owners
        self.error: BaseException | None = None

    def __enter__(self) -> LibraryGuard:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> bool:
        owned = type(error).__module__.partition(".")[0] in self.owners
        if isinstance(error, Exception) and not isinstance(error, UserError):
            self.error = error if owned or isinstance(error, FAULTS) else None
        return self.error is not None

    @property
    def reason(self) -> str:
        """The error in one line of bounded length."""
        kind, text = type(self.error).__name__, " ".join(str(self.error).split())
        return f"{kind}: {text[:MAX_REASON]}" if text else kind


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as one with dotted names, `sampling.temperature`; None is left out."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        elif value is not None:
            found[above + key] = value if isinstance(value, bool | int | float) else str(value)
    return found


def numbers(values: Mapping[str, Any], group: str = "") -> dict[str, float]:
    """The finite numbers among `values`, but for settings, with `group` before their names."""
    return {
        group + name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if name not in SETTINGS and math.isfinite(value)
    }


def evaluation(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation; of `pass_at` and `maj_at` the estimates."""
    kinds = ((kind, entry.get(kind, {})) for kind in ("pass_at", "maj_at"))
    estimates = {f"{kind}_{k}": found[0] for kind, many in kinds for k, found in many.items()}
    return numbers({**entry, **estimates}, "eval/")
