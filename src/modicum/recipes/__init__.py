"""Learning rates, and recipes: whole configs, each a TOML file here (docs/recipes.md)."""

import math
from itertools import takewhile
from pathlib import Path
from typing import Any

from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.spec import nearest
from modicum.types import UserError

# Rate x root of the numbers that train, where a first step moves the policy by 0.01 nats a token
# (docs/rates.md): from the tiny base and SmolLM2-135M; often three times off, up to ten.
STARTS = {"whole model": 0.12, "schedules, masks": 0.12, "optimizers": 0.12, "layers": 0.3}
OTHERS = 0.3
RECIPES = ("addition", "gsm8k", "tinyzero", "r1_zero", "tina", "lora_rank1")


def start_rate(update: Any, numbers: int) -> float:
    """The rate for `update`, which trains so many numbers, where nothing better is known."""
    faster = getattr(update, "faster", 1.0)
    return STARTS.get(getattr(update, "kind", ""), OTHERS) / math.sqrt(numbers) * faster


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
