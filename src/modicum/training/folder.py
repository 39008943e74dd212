"""The folder of a run: begun anew, or gone on with from its last checkpoint."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

from modicum import machine, runs
from modicum.config import Tracking, TrainConfig, from_mapping, read_toml, to_toml
from modicum.parts import ENVIRONMENT
from modicum.training import origin
from modicum.training.checkpoint import restore
from modicum.training.session import Session
from modicum.types import UserError


def begin(session: Session, overwrite: bool, resume: bool) -> tuple[runs.Run, int]:
    """The run folder and the step to begin with.

    Raises UserError where a folder holds something else, or a run with other settings.
    """
    config = session.config
    folder = run_folder(config)
    if not resume:
        run = runs.Run.create(folder, to_toml(config), overwrite)
        run.write(ENVIRONMENT, machine.environment() | origin.record(session, folder))
        return run, 0
    run = runs.open_run(folder)
    if (folder / "result.json").exists():
        raise UserError(f"{folder} holds a finished run; --overwrite starts anew")
    past = from_mapping(TrainConfig, read_toml(folder / "config.toml"), str(folder / "config.toml"))
    # A file has 1.0 where a caller may have said 1.
    now = from_mapping(TrainConfig, tomllib.loads(to_toml(config)), "settings")
    # The folder, and the base, may have been moved, or be named in another way now.
    old, new = (
        to_toml(replace(c, out="", model="", tracking=Tracking())).splitlines() for c in (past, now)
    )
    if old != new:
        changed = next((a for a, b in zip(old, new, strict=False) if a != b), "")
        raise UserError(
            f"{folder} was begun with other settings ({changed.strip()}); it cannot go on"
        )
    saved = runs.checkpoints(folder)
    first = restore(session, saved[-1]) if saved else 0
    origin.move(run, past, config)
    run.cut(first)
    return run, first


def run_folder(config: TrainConfig) -> Path:
    """The folder that the config names, or one under runs/ made from update and seed."""
    if config.out:
        return Path(config.out)
    name = "".join(c if c.isalnum() else "-" for c in config.update).strip("-")
    return Path("runs") / f"{name}-seed{config.seed}"
