"""Checkpoints: the fp32 values of what trains, the optimizer's state, counters, curriculum.

Nothing is in them that the config, the seed and the base model give again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from modicum import runs
from modicum.config import Compute
from modicum.parts import RunParts, past_config
from modicum.training.session import Session, prepare
from modicum.types import UserError

KEYS = {"step", "base", "active", "pushed", "moved", "schedule"}


def save(session: Session, run: runs.Run, step: int) -> Path:
    """Write the checkpoint after `step` steps; it counts only when it is whole."""
    schedule, proof = session.prepared.schedule, session.proof
    tensors = session.optimization.tensors()
    tensors |= {f"schedule/{n}": t.detach().contiguous() for n, t in schedule.tensors().items()}
    state = session.counters.state() | {
        "step": step,
        "base": proof.base,
        "active": sorted(session.prepared.active),
        "pushed": sorted(proof.pushed),
        "moved": sorted(proof.moved),
        "schedule": schedule.state(),
        "curriculum": session.order.state(),
    }
    with run.checkpointing(sum(t.numel() * t.element_size() for t in tensors.values())):
        folder = run.checkpoint_folder(step)
        save_file(tensors, folder / "tensors.safetensors")
        return run.seal(folder, state)


def restore(session: Session, folder: Path) -> int:
    """Set the session to a checkpoint; returns the number of steps it has behind it.

    Raises UserError when the checkpoint is damaged or belongs to another base or update.
    """
    state = restore_policy(session, folder)
    with _readable(folder, f"the curriculum {session.config.curriculum}"):
        session.order.load(state["curriculum"])
    return int(state["step"])


def restore_policy(session: Session, folder: Path) -> dict[str, Any]:
    """`restore` of all but the curriculum; what the checkpoint's `state.json` holds."""
    path, state = runs.read_checkpoint(folder)
    tensors = load_file(path, device=str(session.policy.device))
    where = f"checkpoint {folder}"
    missing = KEYS - state.keys()
    if missing:
        raise UserError(f"{where} is damaged: its state.json has no {min(missing)!r}")
    session.counters.load(state, where)
    session.optimization.load(tensors, frozenset(state["active"]), folder)
    if state["base"] != session.proof.base:
        raise UserError(f"{where} was trained on another base model: its hash differs")
    drawn = {
        n.removeprefix("schedule/"): t for n, t in tensors.items() if n.startswith("schedule/")
    }
    with _readable(folder, f"the schedule of {session.config.update}"):
        session.prepared.schedule.load(state["schedule"], drawn)
    session.policy.follow(session.prepared)
    session.proof.resume(state["pushed"], state["moved"])
    return state


@contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    """What `what` cannot read of its state is a UserError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"checkpoint {folder} is damaged: what {what} kept cannot be read"
            f" ({type(error).__name__} {error})"
        ) from None


def reload(
    folder: Path,
    compute: Compute | None = None,
    rollout_batch: int | None = None,
    parts: RunParts | None = None,
) -> Session:
    """The trained policy of a run: the base with the newest checkpoint's values.

    `compute` runs it on another device, `rollout_batch` with another number of completions at
    a time; the dtype stays that of the run. `parts` has the update if no expression names it.
    All that is not the policy is a placeholder.
    """
    config = past_config(folder)
    if compute and compute.dtype != config.compute.dtype:
        raise UserError(
            f"{folder} was trained in {config.compute.dtype}; it runs in no other dtype"
        )
    saved = runs.checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} has no checkpoint yet")
    config = replace(config, compute=compute or config.compute)
    if rollout_batch is not None:
        config = replace(config, batch=replace(config.batch, rollout_batch=rollout_batch))
    # Not needed, and perhaps not to be had: files may be elsewhere by now, objects gone.
    others = {"task": "arithmetic", "reward": "accuracy", "objective": "grpo"}
    update = RunParts(update=parts.update if parts else None)
    session = prepare(replace(config, **others, curriculum="uniform"), update)
    restore_policy(session, saved[-1])
    session.config = config
    return session
