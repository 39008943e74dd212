"""What a run begins with that its settings only name: the base, the problems, its own functions.

They lie in files that may have changed when the run goes on. So their hashes stand in
`environment.json`, from the first moment (a checkpoint may be long in coming), beside the folder
that the run was begun in, from which relative paths lead."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modicum import machine, runs, tasks
from modicum.config import TrainConfig
from modicum.models.identity import Identity
from modicum.models.load import locate
from modicum.parallel import Team
from modicum.parts import RunParts, base_of, began, problems_changed
from modicum.rewards import Reward
from modicum.tasks.prompts import stops
from modicum.training.session import Session, prepare
from modicum.types import UserError


def record(session: Session, folder: Path) -> dict[str, Any]:
    """What `environment.json` says of a run's beginning: the machine, what settings only name."""
    config, base, here = session.config, session.identity, Path.cwd()
    source = locate(config.model, config.trust, config.base)
    program, *given = sys.argv
    seen, gpu = machine.environment(), session.policy.device.type != "cpu"
    if Path(program).name == "modicum" or Path(program).parts[-2:] == ("modicum", "__main__.py"):
        program = "modicum"  # wherever it is installed
    return seen | {
        "device": seen["gpu" if gpu else "processor"],
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "host": platform.node(),
        "command": shlex.join([program, *given]),
        # Twice: the folder may be moved alone, or with all that is around it.
        "began_in": [str(here), os.path.relpath(here, folder.resolve())],
        "base": {
            "model": config.model,
            "local": source.local or source.adapter is not None,
            **({"under": source.place} if source.adapter else {}),
            "dtype": config.compute.dtype,
            **base.hashes,
            "base_hash_seconds": base.seconds,
        },
        "stop": stops(session.policy.tokenizer, config.sampling),
        "task": config.task,
        "problems": tasks.fingerprint(session.task),
        "examples": list(session.examples),
        "functions": _modules(session.reward),
    }


def prepare_like(
    config: TrainConfig, parts: RunParts | None, past: Sequence[Path], team: Team | None = None
) -> Session:
    """`prepare`; UserError where base or problems are not what runs in `past` began with."""

    def check(found: Identity) -> None:
        for folder in past:
            known = base_of(folder)
            # Another dtype is another setting, and is refused as such.
            if known.get("dtype") == config.compute.dtype:
                how = "trained" if (folder / "config.toml").is_file() else "evaluated"
                found.require(known, f"{folder} was {how} on", config.model)

    session = prepare(config, parts, check, team)
    for folder in past:
        changed = problems_changed(folder, session.task)
        if changed and began(folder).get("task") == config.task:
            raise UserError(f"{folder}: {changed}; put them back, or begin anew with another --out")
    return session


def spare_base(config: TrainConfig, folder: Path) -> None:
    """UserError where the run folder, which is to be replaced, holds the base."""
    source = locate(config.model, config.trust, config.base)
    held = [Path(source.place)] if source.local else []
    held += [Path(config.init_adapter)] if config.init_adapter else []
    for place in [*held, *([source.adapter] if source.adapter else [])]:
        if folder.resolve() in (place.resolve(), *place.resolve().parents):
            raise UserError.of("base_inside", folder=folder, place=place)


def notes(session: Session, folder: Path) -> list[str]:
    """What else has changed since the run began: files with its own reward functions."""
    then = began(folder).get("functions")
    if not isinstance(then, dict):
        return []
    now = _modules(session.reward)
    return [
        f"{path} has changed since the run began: what it names is another file"
        for path in sorted(now.keys() & then.keys())
        if now[path] != then[path]
    ]


def _modules(reward: Reward) -> dict[str, str]:
    """The hash of the file of every term that has one: a function's, a reward model's report."""
    files = {getattr(term, "path", ""): getattr(term, "file", Path()) for _, term in reward.terms}
    return {path: runs.file_hash(file) for path, file in files.items() if file.is_file()}
