"""What a run works with: model, update, optimizer, proofs; and its checkpoints.

A checkpoint holds the fp32 values of what trains, the optimizer's state and the counters,
and nothing that the config, the seed and the base model give again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from modicum import curriculum, objective, recipes, rewards, runs, tasks, updates
from modicum.config import Compute, TrainConfig, from_mapping, read_toml
from modicum.engine import Engine, make
from modicum.engine.rollout import check_length
from modicum.models.load import Loaded, load
from modicum.models.precision import Masters
from modicum.tasks.prompts import encode
from modicum.types import UserError
from modicum.updates.proofs import ChangeProof

COUNTERS = (
    "optimizer_steps",
    "skipped",
    "skipped_in_row",
    "generated_tokens",
    "agreement_max",
    "trained_seconds",
    "checked_first",
)


@dataclass
class Session:
    """Everything that a run works with, after its config has been read."""

    config: TrainConfig
    loaded: Loaded
    task: tasks.Task
    reward: rewards.Reward
    objective: objective.Objective
    curriculum: curriculum.Curriculum
    prepared: updates.Prepared
    engine: Engine
    masters: Masters
    optimizer: torch.optim.Optimizer
    proof: ChangeProof
    learning_rate: float
    base: str
    """Hash of the frozen tensors, which a checkpoint must fit."""
    optimizer_steps: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    generated_tokens: int = 0
    agreement_max: float = 0.0
    trained_seconds: float = 0.0
    checked_first: bool = False

    @property
    def trainable_parameters(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for p in self.prepared.trainable.values())

    @property
    def total_parameters(self) -> int:
        """How many numbers the model has, adapters included."""
        return self.trainable_parameters + sum(p.numel() for p in self.prepared.frozen.values())


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
    masters = Masters(prepared.trainable)
    optimizer = torch.optim.AdamW(
        list(masters.tensors.values()),
        lr=rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    proof = ChangeProof(prepared, masters.tensors)
    return Session(
        replace(config, optimizer=replace(settings, learning_rate=rate)),
        loaded,
        task,
        reward,
        goal,
        order,
        prepared,
        engine,
        masters,
        optimizer,
        proof,
        rate,
        proof.base,
    )


def save(session: Session, run: runs.Run, step: int) -> Path:
    """Write the checkpoint after `step` steps; it counts only when it is whole."""
    folder = run.checkpoint_folder(step)
    tensors = {f"value/{n}": t.detach().contiguous() for n, t in session.masters.tensors.items()}
    for name, master in session.masters.tensors.items():
        for key, value in session.optimizer.state.get(master, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value.detach().contiguous()
    save_file(tensors, folder / "tensors.safetensors")
    state = {key: getattr(session, key) for key in COUNTERS}
    state |= {"step": step, "base": session.base, "pushed": sorted(session.proof.pushed)}
    return run.seal(folder, state)


def restore(session: Session, folder: Path) -> int:
    """Set the session to a checkpoint; returns the number of steps it has behind it.

    Raises UserError when the checkpoint is damaged or belongs to another base or update.
    """
    path, state = runs.read_checkpoint(folder)
    tensors = load_file(path, device=str(session.loaded.device))
    values = {n.removeprefix("value/"): t for n, t in tensors.items() if n.startswith("value/")}
    wanted = session.masters.tensors
    odd = sorted(values.keys() ^ wanted.keys())
    odd = odd or [n for n in sorted(wanted) if values[n].shape != wanted[n].shape]
    if odd:
        raise UserError(f"checkpoint {folder} is of another update or model (see {odd[0]})")
    missing = {"step", "base", "pushed", *COUNTERS} - state.keys()
    if missing:
        raise UserError(f"checkpoint {folder} is damaged: its state.json has no {min(missing)!r}")
    if state["base"] != session.base:
        raise UserError(f"checkpoint {folder} was trained on another base model: its hash differs")
    session.masters.load(values)
    for name, master in wanted.items():
        found: dict[str, Any] = {}
        for full, value in tensors.items():
            kind, _, rest = full.partition("/")
            key, _, owner = rest.partition("/")
            if kind == "optimizer" and owner == name:
                found[key] = value
        if found:
            session.optimizer.state[master] = found
    for key in COUNTERS:
        setattr(session, key, state[key])
    session.proof.push(state["pushed"])
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
