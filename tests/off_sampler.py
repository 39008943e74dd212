"""A sampler that counts as one elsewhere, and whose log-probs are off by a pattern.

What it says of token t is log o + by x (1, -2, 0)[t % 3], with o what the trainer finds too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from modicum.engine import Engine
from modicum.engine.samplers import LocalSampler, SamplerSettings
from modicum.types import Completion

PATTERN = (1.0, -2.0, 0.0)


class OffSampler(LocalSampler):
    """Draws in this process, and says something else."""

    in_process = False
    by = 0.0

    def sample(self, *given: Any, **options: Any) -> list[tuple[Completion, ...]]:
        return [tuple(map(self.off, group)) for group in super().sample(*given, **options)]

    def off(self, completion: Completion) -> Completion:
        logprobs = completion.logprobs
        said = tuple(p + self.by * PATTERN[t % 3] for t, p in enumerate(logprobs))
        return replace(completion, logprobs=said, trunk=None)

    def metrics(self) -> dict[str, float]:
        return {"time/sync_seconds": 0.25, "sync/bytes": 1024}


class Off(SamplerSettings):
    """Off by so many nats."""

    name: ClassVar[str] = "off"
    by: float = 0.0

    def begin(self, engine: Engine, loaded: Any, prepared: Any, compute: Any, rows: int) -> Any:
        made = OffSampler(engine, loaded.tokenizer, loaded.end_tokens, rows)
        made.by = self.by
        return made
