"""Sessions under a schedule, driven by rows made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conftest import random_model
from modicum import updates
from modicum.config import Compute, Optimizer, TrainConfig
from modicum.training import session, step
from modicum.training.session import Session
from modicum.types import Batch, Row

ROWS = tuple(
    Row((40, 41 + i // 2), (50 + i, 60), (-5.5, -5.5), (-1.0) ** i, group=i // 2) for i in range(4)
)
BATCH = Batch(ROWS, 4, 8, frozenset({0, 1}))


def session_of(folder: Path, update: str, dtype: Any = "fp32", rate: float = 1e-3, kl: float = 0):
    config = replace(
        TrainConfig(),
        model=str(folder),
        update=update,
        objective=f"grpo(kl={kl})",
        optimizer=Optimizer(learning_rate=rate),
        compute=Compute("cpu", dtype),
    )
    return session.prepare(config)


def walk(made: Session, steps: int) -> list[set[str]]:
    """So many rollouts of one step; what trained in each."""
    found = []
    for _ in range(steps):
        step.switch(made)
        found.append(set(made.prepared.active))
        step.optimizer_step(made, step.backward(made, BATCH, {})["loss"])
    return found


def layer_of(names: set[str] | frozenset[str]) -> list[int]:
    """The layers that these names lie in."""
    return sorted({int(name.split(".")[2]) for name in names if ".layers." in name})


def numbers(made: Session, names: set[str]) -> int:
    return sum(made.prepared.trainable[name].numel() for name in names)


def schedule_of(text: str, family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    return updates.parse(text).apply(random_model(family, **changes), seed).schedule


class Bare(nn.Module):
    """A model that has parameters of these dotted names and shapes, and does nothing."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            place: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(torch.zeros(shape)))

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding(1, 1)

    def get_output_embeddings(self) -> None:
        return None
