"""What a run counts: in every checkpoint, and in the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from modicum.types import UserError


@dataclass
class Counters:
    """Counts since the beginning of a run, resumed or not."""

    optimizer_steps: int = 0
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""
    skipped_in_row: int = 0
    generated_tokens: int = 0
    agreement_max: float = 0.0
    trained_seconds: float = 0.0
    checked_first: bool = False
    """Whether the change proof of the first step has been made."""
    signal_steps: int = 0
    """Steps that the schedule was shown: with a signal, and finite."""
    active_sum: int = 0
    """How many numbers trained, summed over the optimizer steps."""
    decisions: int = 0
    optimizer_bytes: int = 0
    """The most that the optimizer has held where the model is."""
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
