"""Learning rates, and recipes: whole configs that rest on them, as the TOML files beside this one.

`modicum train --recipe NAME` runs one, and options override its settings. Each says in the
comment at its head what it repeats, where it departs, what it needs and what the source reports;
the numbers of a source are its own and were not measured here (docs/recipes.md).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.spec import nearest
from modicum.types import UserError

TINY_RATE = 2e-4
LARGE_RATE = 1e-6
# The best of three rates for each, on the tune split (docs/tiny.md, scripts/tune_rates.py).
DEMO_RATES = {"full": 2e-4, "last(1)": 8e-4, "lora(rank=8)": 1e-3}
RECIPES = ("addition", "gsm8k", "tinyzero", "r1_zero", "tina", "lora_rank1")


def default_learning_rate(model: str, update: Any) -> float:
    """The rate for `update` when the user gave none.

    2e-4 for the tiny base (docs/tiny.md), else 1e-6, which RL
    on pretrained models commonly uses; times ten for LoRA ("LoRA Without Regret").
    """
    return (TINY_RATE if model == "tiny" else LARGE_RATE) * update.rate_scale


def demo(update: str, seed: int = 0) -> TrainConfig:
    """The run of `modicum demo` for one update: tiny base, arithmetic, two cores.

    Updates that were not tuned take the default rate.
    """
    config = replace(TrainConfig(), update=update, seed=seed)
    rate = DEMO_RATES.get(update)
    return replace(config, optimizer=replace(config.optimizer, learning_rate=rate))


def named(name: str) -> TrainConfig:
    """The recipe called `name`; an unknown one is a UserError."""
    return from_mapping(TrainConfig, read_toml(_file(name)), name)


def about(name: str) -> str:
    """What the comment at the head of a recipe says."""
    lines = _file(name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line[1:].strip() for line in takewhile(lambda x: x.startswith("#"), lines))


def _file(name: str) -> Path:
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}; {nearest(name, RECIPES)}")
    return Path(__file__).with_name(f"{name}.toml")
