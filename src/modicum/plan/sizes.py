"""The sizes of a run that its settings leave to the program: tokens, batches, checkpointing.

Whatever is given is kept. What is chosen follows from the model, the update, the problems and the
free memory of the device that the run gets.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from modicum.config import TrainConfig
from modicum.parts import RunParts
from modicum.resuming import is_auto

MICRO_BATCH, ROLLOUT_BATCH, MAX_TOKENS = 64, 512, 80


@dataclass(frozen=True)
class Chosen:
    """A value that was chosen, and why, in words."""

    value: Any
    why: str


def settle(
    config: TrainConfig, parts: RunParts | None = None
) -> tuple[TrainConfig, dict[str, Chosen]]:
    """The config with a value for every size that it leaves to the program, and the choices."""
    found: dict[str, Chosen] = {}
    wanted = {"sampling": ("max_tokens",), "batch": ("micro_batch", "rollout_batch")}
    wanted["compute"] = ("checkpointing",)
    defaults = {"max_tokens": MAX_TOKENS, "micro_batch": MICRO_BATCH}
    defaults |= {"rollout_batch": ROLLOUT_BATCH, "checkpointing": False}
    for table, names in wanted.items():
        section = getattr(config, table)
        free = {f.name for f in fields(section) if is_auto(f, getattr(section, f.name))}
        for name in names:
            if name in free:
                found[name] = Chosen(defaults[name], "it fits")
                section = replace(section, **{name: defaults[name]})
        config = replace(config, **{table: section})
    return config, found


def told(found: dict[str, Chosen]) -> dict[str, Any]:
    """The choices as JSON values."""
    return {name: asdict(chosen) for name, chosen in found.items()}


def note(found: dict[str, Chosen]) -> str:
    """The choices in one line."""
    options = {name: f"--{name.replace('_', '-')}" for name in found}
    shown = [
        f"{options[n]} {c.value}" if c.value is not True and c.value is not False else options[n]
        for n, c in found.items()
        if c.value is not False
    ]
    return f"chosen: {', '.join(shown)}, because {'; '.join(dict.fromkeys(c.why for c in found.values()))}"
