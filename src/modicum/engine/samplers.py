"""Samplers: what draws the completions of a step.

To add one: a file with a `Sampler`, a frozen dataclass of its settings (`SamplerSettings`),
and its row in SAMPLERS. The contract suite (tests/test_samplers.py) picks it up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from modicum import spec
from modicum.config import Compute
from modicum.engine.base import Engine, Sampler
from modicum.engine.local import LocalSampler
from modicum.models.load import Loaded
from modicum.updates.base import Prepared


class SamplerSettings(spec.Spec, ABC):
    """Settings that begin a sampler."""

    @abstractmethod
    def begin(
        self,
        engine: Engine,
        loaded: Loaded,
        prepared: Prepared | None,
        compute: Compute,
        rollout_batch: int,
    ) -> Sampler:
        """A sampler of the policy as it is now; `prepared` is its update, if it trains."""


@dataclass(frozen=True)
class Local(SamplerSettings):
    """This process, token by token, with the engine that trains."""

    name: ClassVar[str] = "local"

    def begin(
        self,
        engine: Engine,
        loaded: Loaded,
        prepared: Prepared | None,
        compute: Compute,
        rollout_batch: int,
    ) -> Sampler:
        ends = loaded.end_tokens
        return LocalSampler(engine, loaded.tokenizer, ends, rollout_batch, compute.trunk_bytes)


SAMPLERS: dict[str, type] = {cls.name: cls for cls in (Local,)}


def parse(text: str) -> SamplerSettings:
    """The sampler that an expression names."""
    return spec.build("sampler", text, SAMPLERS)
