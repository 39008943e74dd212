"""What a run counts: in every checkpoint, and in the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from modicum.types import UserError
from modicum.updates.stepper import StepCounters


@dataclass
class Counters(StepCounters):
    """Counts since the beginning of a run, resumed or not; the stepper's are the stepper's."""

    rollouts: int = 0
    """Steps of the run that have ended, those without a signal too."""
    updates: int = 0
    """Of the present rollout, skipped ones too."""
    generated_tokens: int = 0
    agreement_max: float = 0.0
    trained_seconds: float = 0.0
    checked_first: bool = False
    """Whether the change proof of the first step has been made."""
    flops: float = 0.0
    """Matrix FLOPs of sampling and training so far."""
    last_spent: float = 0.0
    """What the last step took of the budget, in its unit."""

    def spent(self, unit: str) -> float:
        """What was spent so far: tokens, flops or seconds."""
        counted = {
            "tokens": self.generated_tokens,
            "flops": self.flops,
            "seconds": self.trained_seconds,
        }
        return counted[unit]

    def state(self) -> dict[str, Any]:
        """The counters as JSON values."""
        return asdict(self)

    def load(self, state: dict[str, Any], where: str) -> None:
        """Set what `state` gave; UserError when one is missing."""
        for field in fields(self):
            if field.name not in state:
                raise UserError(f"{where} is damaged: its state.json has no {field.name!r}")
            setattr(self, field.name, state[field.name])
