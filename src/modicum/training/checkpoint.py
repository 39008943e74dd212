"""Checkpoints: the fp32 values of what trains, the optimizer's state, counters, curriculum.

Nothing is in them that the config, the seed and the base model give again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from modicum import runs
from modicum.config import TrainConfig
from modicum.models.identity import HASHES
from modicum.parts import RunParts, is_given, past_bases, past_config, past_update
from modicum.training.session import Counters, Session, prepare
from modicum.types import UserError
from modicum.updates.schedule import below

KEYS = {
    *("step", "start", "active", "pushed", "moved", "tried", "schedule", "drawn", "agreement"),
    *(field.name for field in fields(Counters)),
    *(HASHES.keys() - {"adapter_hash", "init_hash"}),  # which few have
}


def save(session: Session, run: runs.Run, step: int) -> Path:
    """Write the checkpoint after `step` steps; it counts only when it is whole. A process that does
    not write the run takes part in what all make of it."""
    schedule, critic = session.prepared.schedule, session.critic
    state = asdict(session.counters) | {
        "step": step,
        **session.identity.hashes,
        "start": session.proof.at_start,
        **session.optimization.state(),
        "schedule": schedule.state(),
        "curriculum": session.order.state(),
        "agreement": session.agreement.state(),
        "critic": critic.state() if critic else {},
    }
    tensors = session.parallel.whole(session.tensors())
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    kept = session.config.records.keep_checkpoints
    if run.writes:
        with run.checkpointing(step, state, size, kept) as folder:
            save_file(tensors, folder / "tensors.safetensors")
    return run.checkpoint(step)


def restore(session: Session, folder: Path) -> int:
    """Set the session to a checkpoint; its steps. UserError if it is damaged or of another run."""
    tensors, state = read(folder)
    past = f"checkpoint {folder} was trained on"
    session.identity.require(state, past, session.config.model)
    _restore_policy(session, folder, tensors, state)
    with _readable(folder, f"the curriculum {session.config.curriculum}"):
        session.order.load(state["curriculum"])
    with _readable(folder, "the agreement proof"):
        session.agreement.load(state["agreement"])
    return int(state["step"])


def read(folder: Path) -> tuple[Path, dict[str, Any]]:
    """`runs.read_checkpoint` of one that has all that it needs."""
    path, state = runs.read_checkpoint(folder)
    missing = KEYS - state.keys()
    if missing:
        raise UserError(f"checkpoint {folder} is damaged: its state.json has no {min(missing)!r}")
    return path, state


def _restore_policy(session: Session, folder: Path, path: Path, state: dict[str, Any]) -> None:
    """`restore` of all but the curriculum, from what `read` gave."""
    tensors = load_file(path, device=str(session.policy.device))
    for entry in fields(Counters):
        setattr(session.counters, entry.name, state[entry.name])
    session.policy.ledger = session.counters.ledger
    with _readable(folder, "the rounding"):
        state["drawn"] = {name: int(step) for name, step in state["drawn"].items()}
    session.optimization.load(tensors, state, folder)
    if state["start"] != session.proof.at_start:
        raise UserError.of("other_start", folder=folder, update=session.config.update)
    with _readable(folder, f"the schedule of {session.config.update}"):
        session.prepared.schedule.load(state["schedule"], below("schedule/", tensors))
    session.policy.follow(session.prepared)
    if session.critic is not None:
        with _readable(folder, "the critic"):
            session.critic.load(state["critic"], below("critic/", tensors), folder)


@contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    """What `what` cannot read of its state is a UserError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError.of("damaged_state", folder=folder, what=what, error=error) from None


def reload(
    folder: Path,
    config: TrainConfig | None = None,
    parts: RunParts | None = None,
    at: Path | None = None,
    look: Callable[[Session], None] = lambda session: None,
) -> Session:
    """The trained policy of a run: the base with the newest checkpoint's values, or those `at` one.

    `config` is the run's own with what is to be otherwise: the place of its base, the device, how
    many completions are sampled at a time. Another base or dtype is a UserError. `parts` has the
    update if no expression names it. All that is not the policy is a placeholder. `look` is shown it
    as it began."""
    past = past_config(folder)
    config = config or past_bases(folder, past)
    if config.compute.dtype != past.compute.dtype:
        raise UserError(f"{folder} was trained in {past.compute.dtype}; it runs in no other dtype")
    saved = runs.checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} has no checkpoint yet")
    tensors, state = read(at := at or saved[-1])
    # Not needed, and perhaps not to be had: files may be elsewhere by now, objects gone.
    others = {"task": "arithmetic", "reward": "accuracy", "objective": "grpo"}
    given = parts.update if parts else None
    if given is None and not is_given(config.update):
        given = past_update(folder, config.update)
    update = RunParts(update=given)
    known = state, f"checkpoint {at} was trained on", config.model
    placeholders = replace(config, **others, curriculum="uniform")
    session = prepare(placeholders, update, lambda found: found.require(*known))
    look(session)
    _restore_policy(session, at, tensors, state)
    session.config = config
    return session
