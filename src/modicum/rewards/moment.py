"""What TRL gives reward functions besides completions: `trainer_state`, `log_metric`, `log_extra`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from modicum.types import Completion


class Moment:
    """A step in which completions are scored, and what functions log meanwhile."""

    def __init__(self, step: int = 0, steps: int = 1) -> None:
        # By the names of transformers' TrainerState; a step is a rollout.
        self.state = SimpleNamespace(global_step=step, max_steps=steps, epoch=step / steps)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.extras: dict[int, dict[str, Any]] = defaultdict(dict)  # by the completion's id

    def arguments(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """What a function may have parameters for, in a call for these completions."""
        extra = partial(self._log_extra, completions)
        return {"trainer_state": self.state, "log_metric": self._log_metric, "log_extra": extra}

    def metrics(self) -> dict[str, float]:
        """The mean of every metric that was logged."""
        return {f"user/{name}": math.fsum(of) / len(of) for name, of in self.values.items()}

    def logged(self, completion: Completion) -> dict[str, Any]:
        """What was logged of a completion, for samples.jsonl."""
        return {"logged": self.extras[id(completion)]} if id(completion) in self.extras else {}

    def _log_metric(self, name: str, value: float) -> None:
        if math.isfinite(number := float(value)):  # JSON has no other
            self.values[str(name)].append(number)

    def _log_extra(self, completions: Sequence[Completion], column: str, values: Any) -> None:
        if (count := len(found := list(values))) != len(completions):
            raise ValueError(
                f"log_extra({column!r}): {count} values for {len(completions)} completions"
            )
        for completion, value in zip(completions, found, strict=True):
            value = value.item() if getattr(value, "ndim", 1) == 0 else value
            finite = isinstance(value, float) and math.isfinite(value)
            plain = finite or isinstance(value, str | int | None)
            self.extras[id(completion)][str(column)] = value if plain else str(value)
