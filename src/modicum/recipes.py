"""Named functions that return a whole TrainConfig, and the learning rates they rest on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modicum.config import TrainConfig

TINY_RATE = 2e-4
LARGE_RATE = 1e-6


def default_learning_rate(model: str, update: Any) -> float:
    """The rate for `update` when the user gave none.

    2e-4 for the tiny base (docs/tiny.md), else 1e-6, which RL
    on pretrained models commonly uses; times ten for LoRA ("LoRA Without Regret").
    """
    return (TINY_RATE if model == "tiny" else LARGE_RATE) * update.rate_scale


# The best of three rates for each, on the tune split (docs/tiny.md, scripts/tune_rates.py).
DEMO_RATES = {"full": 2e-4, "last(1)": 8e-4, "lora(rank=8)": 1e-3}


def demo(update: str, seed: int = 0) -> TrainConfig:
    """The run of `modicum demo` for one update: tiny base, arithmetic, two cores.

    Updates that were not tuned take the default rate.
    """
    config = replace(TrainConfig(), update=update, seed=seed)
    rate = DEMO_RATES.get(update)
    return replace(config, optimizer=replace(config.optimizer, learning_rate=rate))
