"""What a run works with: model, update, optimizer, proofs; and its checkpoints.

A checkpoint holds the fp32 values of what trains, the optimizer's state and the counters,
and nothing that the config, the seed and the base model give again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from modicum import curriculum, objective, recipes, rewards, runs, tasks, updates
from modicum.config import Compute, TrainConfig, from_mapping, read_toml
from modicum.engine import Engine, make
from modicum.engine.rollout import check_length
from modicum.models.load import Loaded, load
from modicum.models.precision import Masters
from modicum.plan.flops import FlopCounter
from modicum.tasks.prompts import encode
from modicum.types import UserError
from modicum.updates.optimization import Optimization
from modicum.updates.proofs import Proof
from modicum.updates.stepper import StepCounters

COUNTERS = (
    "optimizer_steps",
    "skipped",
    "skipped_in_row",
    "generated_tokens",
    "agreement_max",
    "trained_seconds",
    "checked_first",
    "signal_steps",
    "active_sum",
    "decisions",
    "optimizer_bytes",
    "flops",
    "last_spent",
)


@dataclass
class Session(StepCounters):
    """Everything that a run works with, after its config has been read."""

    config: TrainConfig
    loaded: Loaded
    task: tasks.Task
    reward: rewards.Reward
    objective: objective.Objective
    curriculum: curriculum.Curriculum
    prepared: updates.Prepared
    engine: Engine
    optimization: Optimization
    proof: Proof
    counter: FlopCounter
    learning_rate: float
    base: str
    """Hash of the frozen tensors, which a checkpoint must fit."""
    generated_tokens: int = 0
    agreement_max: float = 0.0
    trained_seconds: float = 0.0
    checked_first: bool = False
    start_memory_bytes: int = 0
    """What the process held before the model was loaded (CPU; on a GPU nothing)."""

    flops: float = 0.0
    """Matrix FLOPs of sampling and training so far."""
    last_spent: float = 0.0
    """What the last step took of the budget, in its unit."""

    @property
    def spent(self) -> float:
        """What was spent so far, in the unit of the budget."""
        counted = {
            "tokens": self.generated_tokens,
            "flops": self.flops,
            "seconds": self.trained_seconds,
        }
        return counted[self.config.budget.budget_unit]

    def progress(self, done: int) -> float:
        """How much of the run lies behind it after `done` steps, from 0 to 1."""
        limit = self.config.budget.budget
        of_steps = done / self.config.steps if self.config.steps else 1.0
        return min(1.0, max(of_steps, self.spent / limit if limit else 0.0))

    def ended(self, done: int) -> bool:
        """Whether the run ends after `done` steps: another would go further past the budget."""
        limit = self.config.budget.budget
        over = bool(limit) and done > 0 and self.spent + self.last_spent / 2 >= limit
        return over or done >= self.config.steps

    @property
    def trainable_parameters(self) -> int:
        """How many numbers may train."""
        return self.optimization.size(self.prepared.trainable)

    @property
    def active_parameters(self) -> int:
        """How many numbers train now."""
        return self.optimization.size(self.prepared.active)

    @property
    def masters(self) -> Masters:
        """The fp32 tensors that the optimizer moves."""
        return self.optimization.masters

    @property
    def total_parameters(self) -> int:
        """How many numbers the model has, adapters included."""
        return sum(p.numel() for p in self.prepared.model.parameters())


def prepare(config: TrainConfig) -> Session:
    """Load the model, apply the update, and build what the loop needs."""
    task, update = tasks.parse(config.task), updates.parse(config.update)
    reward, goal = rewards.parse(config.reward), objective.parse(config.objective)
    order = curriculum.parse(config.curriculum)
    first = task.problem("train", config.seed, 0)  # a bad task fails before the model loads
    loaded = load(config.model, config.compute.device, config.compute.dtype, config.trust)
    prompt = encode(first, loaded.tokenizer, config.sampling)
    check_length([prompt], loaded.model, config.sampling)
    prepared = update.apply(loaded.model, config.seed)
    if goal.kl > 0:
        prepared.keep_reference()
    engine = make(
        prepared.model,
        loaded.device,
        prepared.lowest_layer,
        config.compute.engine,
        config.compute.checkpointing,
    )
    settings = config.optimizer
    rate = settings.learning_rate or recipes.default_learning_rate(config.model, update)
    prepared.schedule.plan(config.steps * config.batch.updates_per_rollout)
    optimization = Optimization(prepared, settings)
    session = Session(
        replace(config, optimizer=replace(settings, learning_rate=rate)),
        loaded,
        task,
        reward,
        goal,
        order,
        prepared,
        engine,
        optimization,
        optimization.proof,
        FlopCounter(prepared, engine, config.batch, goal.kl > 0),
        rate,
        optimization.proof.base,
    )
    optimization.counters = session
    return session


def save(session: Session, run: runs.Run, step: int) -> Path:
    """Write the checkpoint after `step` steps; it counts only when it is whole."""
    folder = run.checkpoint_folder(step)
    tensors = session.optimization.tensors()
    schedule = session.prepared.schedule
    tensors |= {f"schedule/{n}": t.detach().contiguous() for n, t in schedule.tensors().items()}
    save_file(tensors, folder / "tensors.safetensors")
    state = {key: getattr(session, key) for key in COUNTERS}
    state |= {
        "step": step,
        "base": session.base,
        "active": sorted(session.prepared.active),
        "pushed": sorted(session.proof.pushed),
        "moved": sorted(session.proof.moved),
        "schedule": schedule.state(),
    }
    return run.seal(folder, state)


def restore(session: Session, folder: Path) -> int:
    """Set the session to a checkpoint; returns the number of steps it has behind it.

    Raises UserError when the checkpoint is damaged or belongs to another base or update.
    """
    path, state = runs.read_checkpoint(folder)
    tensors = load_file(path, device=str(session.loaded.device))
    missing = {"step", "base", "active", "pushed", "moved", "schedule", *COUNTERS} - state.keys()
    if missing:
        raise UserError(f"checkpoint {folder} is damaged: its state.json has no {min(missing)!r}")
    schedule = session.prepared.schedule
    active = frozenset(state["active"])
    session.optimization.load(tensors, active, folder)
    if state["base"] != session.base:
        raise UserError(f"checkpoint {folder} was trained on another base model: its hash differs")
    drawn = {
        n.removeprefix("schedule/"): t for n, t in tensors.items() if n.startswith("schedule/")
    }
    try:
        schedule.load(state["schedule"], drawn)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"checkpoint {folder} is damaged: what the schedule of {session.config.update} kept"
            f" cannot be read ({type(error).__name__} {error})"
        ) from None
    session.engine.follow(session.prepared.lowest_layer)
    for key in COUNTERS:
        setattr(session, key, state[key])
    session.proof.resume(state["pushed"], state["moved"])
    return int(state["step"])


def past_config(folder: Path) -> TrainConfig:
    """The resolved config of a run folder; UserError when it is none."""
    path = runs.open_run(folder).folder / "config.toml"
    return from_mapping(TrainConfig, read_toml(path), str(path))


def reload(folder: Path, compute: Compute | None = None) -> Session:
    """The trained policy of a run: the base with the newest checkpoint's values.

    `compute` runs it on another device; the dtype stays that of the run. `task` and `reward`
    of the session are placeholders.
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
    # Problems and rewards are not needed: their files may be elsewhere by now.
    session = prepare(replace(config, task="arithmetic", reward="accuracy"))
    restore(session, saved[-1])
    session.config = config
    return session
