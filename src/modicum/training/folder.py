"""The folder of a run: begun anew, or gone on with from its last checkpoint; held meanwhile."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modicum import disk, machine, runs
from modicum.config import TrainConfig, from_mapping, to_toml
from modicum.parts import ENVIRONMENT, past_config
from modicum.plan import sizes
from modicum.settings import kept, settings
from modicum.tracking import Note
from modicum.training import origin
from modicum.training.checkpoint import restore
from modicum.training.session import Session
from modicum.types import FolderError, RunInterrupted, UserError

Changes = dict[str, tuple[Any, Any]]  # before and now, by name
LENGTH = {name for name, kind, _ in settings(TrainConfig()) if kind == "length"}


def look(
    folder: Path, config: TrainConfig, overwrite: bool, resume: bool, writes: bool = True
) -> TrainConfig:
    """The config with what the run has chosen; UserError for a folder to neither begin nor resume,
    as far as it is known to a process that does not write it."""
    found = runs.entries(folder) if writes else []
    if writes:
        disk.check_free(folder)
        disk.check_writable(folder)
    if resume:
        runs.open_run(folder)
        config = kept(config, past_config(folder))
        changes, _ = _changes(folder, config)
        if (folder / "result.json").exists() and not LENGTH & changes.keys():
            raise UserError.of("finished", folder=folder)
    elif found:
        runs.check_new(folder, overwrite)
    return config


@contextmanager
def begin(
    session: Session, folder: Path, overwrite: bool, resume: bool, note: Note
) -> Iterator[tuple[runs.Run, int]]:
    """The run folder and the step to begin with; no other process writes the folder meanwhile.

    `note` is told what is not as it was. Raises UserError where a folder holds something else,
    or a run with other settings, or another process writes it."""
    team = session.parallel
    if team.first:
        disk.check_free(folder)  # who writes it is said first, and a folder of others gets no lock
        if resume:
            runs.open_run(folder)
        else:
            runs.check_new(folder, overwrite)
            runs.make_folder(folder)
    with disk.held(folder) if team.first else nullcontext():
        if team.first and not resume:
            run = runs.Run.create(folder, to_toml(session.config), overwrite)
            run.write(ENVIRONMENT, origin.record(session, folder))
        else:
            run = runs.open_run(folder) if team.first else runs.Run(folder, writes=False)
        team.lines([])  # the first process has the folder
        yield _resumed(session, run, note) if resume else (run, 0)


@contextmanager
def resumable(run: runs.Run) -> Iterator[None]:
    """In here a signal that ends the run is RunInterrupted, which says how to go on.

    What else ends it before its end is written down as `failed.json`, until it goes on."""
    (run.folder / runs.FAILED).unlink(missing_ok=True)
    try:
        yield
    except (RunInterrupted, FolderError):
        raise
    except (UserError, RuntimeError, MemoryError) as error:
        run.write(runs.FAILED, {"error": str(error) or type(error).__name__})
        raise
    except machine.Stopped as error:
        done = [c.name.removeprefix("step-").lstrip("0") for c in runs.checkpoints(run.folder)]
        where = f"after step {done[-1]}" if done else "before the first checkpoint"
        text = f"interrupted {where}; --resume goes on from there" * run.writes
        raise RunInterrupted(text, error.number) from None


def _resumed(session: Session, run: runs.Run, note: Note) -> tuple[runs.Run, int]:
    """Go on with the run in a folder, with settings that may differ where that is allowed."""
    folder, config = run.folder, session.config
    changes, digits = _changes(folder, config)
    if LENGTH & changes.keys() and (why := _follows(session)):
        raise UserError.of("length_follows", folder=folder, changes=_told(changes), why=why)
    finished, saved = (folder / "result.json").exists(), runs.checkpoints(folder)
    if finished and not saved:
        raise UserError(f"{folder} holds a finished run without checkpoints; nothing can go on")
    first = restore(session, saved[-1]) if saved else 0
    if first > config.steps:
        raise UserError(f"{folder} has {first} steps behind it; steps = {config.steps} are fewer")
    logged = (folder / name for name in ("metrics.jsonl", "evaluations.jsonl"))
    steps, evaluations = (runs.read_lines(path, optional=True) for path in logged)
    session.stop.replay(steps, evaluations, first)
    if finished and session.ended(first):
        why = session.stop.reason
        raise UserError.of("stopped" if why else "finished", folder=folder, why=why)
    session.parallel.lines([])  # all have read what is now written
    if run.writes:
        run.cut(first, session.ended(first))
    if not (folder / ENVIRONMENT).exists():
        run.write(ENVIRONMENT, origin.record(session, folder))
    if changes:
        run.append("changes.jsonl", {"step": first, "settings": changes})
        rounding = "; last digits may differ from those of an uncut run" if digits else ""
        now, before = _listed(changes, 1), _listed(changes, 0)
        note(f"goes on after step {first} with {now} instead of {before}{rounding}")
    write_config(run, config)
    used = any(e["step"] < first and e.get("policy/learning_rate") for e in steps)
    if not used and "learning_rate" in choices(folder):  # it is found again where it was found
        session.config = replace(config, optimizer=replace(config.optimizer, learning_rate=None))
    return run, first


def chose(session: Session, run: runs.Run, chosen: sizes.Choices) -> list[str]:
    """Write down what the program has chosen for a run; what to tell of it."""
    config, drawn = session.config, session.prepared.drawn
    if chosen:
        run.write("chosen.json", sizes.told(chosen))
    if drawn:
        found = asdict(sizes.Chosen(drawn, f"drawn by the run's seed, {config.seed}"))
        run.write("chosen.json", {**choices(run.folder), "update": found})
    return [sizes.note(config, chosen)] if chosen else []


def choices(folder: Path) -> dict[str, Any]:
    """What the settings of a run left to the program, by name."""
    return runs.read_object(folder / "chosen.json", optional=True)


def write_config(run: runs.Run, config: TrainConfig) -> None:
    """Write a begun run's settings with its first `out`: `--config` of it begins another run."""
    out = past_config(run.folder).out
    run.write_text("config.toml", to_toml(replace(config, out=out)))


def _changes(folder: Path, config: TrainConfig) -> tuple[Changes, bool]:
    """The settings that differ, and whether last digits change; UserError for another run."""
    # A file has 1.0 where a caller may have said 1.
    now = from_mapping(TrainConfig, tomllib.loads(to_toml(config)), "settings")
    past = past_config(folder)
    both = zip(settings(past), settings(now), strict=True)
    found = {name: (kind, old, new) for (name, kind, old), (_, _, new) in both if old != new}
    found.pop("out", None)  # the folder may have been moved, or be named in another way now
    for name, (kind, old, new) in found.items():
        if kind == "member" and old.partition("(")[0] == new.partition("(")[0]:
            found[name] = ("digits", old, new)
    changes = {name: (old, new) for name, (_, old, new) in found.items()}
    stay = {name for name, kind, _ in settings(now) if kind in ("member", "fixed")}
    stay -= {name for name, (kind, *_) in found.items() if kind == "digits"}
    if past.sampling.long_prompts == "skip":
        stay.add("sampling.max_prompt_tokens")  # says which problems there are
    other = {name: both for name, both in changes.items() if name in stay}
    if other:
        may = ", ".join(name for name, _, _ in settings(now) if name not in stay)
        raise UserError.of("settings_stay", folder=folder, changes=_told(other), may=may)
    return changes, any(kind == "digits" for kind, _, _ in found.values())


def _listed(changes: Changes, which: int) -> str:
    """The settings that were (0), or that are asked for now (1)."""
    return ", ".join(f"{name} = {pair[which]!r}" for name, pair in changes.items())


def _told(changes: Changes) -> str:
    return f"({_listed(changes, 0)}), not {_listed(changes, 1)}"


def _follows(session: Session) -> str:
    """What in a run follows its length; empty: nothing does."""
    config = session.config
    if config.optimizer.schedule != "constant":
        return f"optimizer.schedule = {config.optimizer.schedule!r} reaches its end with the run"
    if session.order.follows_length:
        return f"curriculum = {config.curriculum!r} is spread over the run"
    if session.prepared.schedule.follows_length:
        return f"update = {config.update!r} is spread over the run"
    return ""


@contextmanager
def sizes_kept(session: Session, run: runs.Run, note: Note, step: int) -> Iterator[None]:
    """In here batches may shrink since memory runs out; the run's files say it as of a resumed one."""
    before = session.config.batch
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        machine.require_out_of_memory(error)
        raise UserError.of("no_smaller_batch") from None
    rollouts = getattr(session.policy.sampler, "rollout_batch", before.rollout_batch)
    if rollouts < before.rollout_batch:
        session.resize(rollout_batch=rollouts)
    batch = session.config.batch
    pairs = {f"batch.{name}": (old, getattr(batch, name)) for name, old in vars(before).items()}
    changes = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if changes:
        run.append("changes.jsonl", {"step": step, "settings": changes})
        write_config(run, session.config)
        now, past = (_listed(changes, which) for which in (1, 0))
        note(f"memory ran out; goes on, with the same result, with {now} instead of {past}")
