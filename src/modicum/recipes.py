"""Named functions that return a whole TrainConfig, and the learning rates they rest on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modicum.config import TrainConfig

TINY_RATE = 2e-4
LARGE_RATE = 1e-6


def default_learning_rate(model: str, update: Any) -> float:
    """The rate for `update` when the user gave none.

    2e-4 for the tiny base (chosen on its tune split, docs/tiny.md), else 1e-6, which RL
    on pretrained models commonly uses; times ten for LoRA ("LoRA Without Regret").
    """
    return (TINY_RATE if model == "tiny" else LARGE_RATE) * update.rate_scale


def demo(update: str, seed: int = 0) -> TrainConfig:
    """The run of `modicum demo` for one update: tiny base, arithmetic, two cores."""
    return replace(TrainConfig(), update=update, seed=seed)
