"""The optimizer's step: what is counted, by hand."""

from __future__ import annotations

import weakref
from dataclasses import asdict, dataclass

import pytest
import torch

from conftest import random_model
from modicum.config import Optimizer
from modicum.training.optimization import Optimization
from modicum.types import RunStopped
from modicum.updates.base import Prepared
from modicum.updates.schedule import Decision, Schedule
from modicum.updates.stepper import StepCounters

NAMES = [f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 2)]
NUMBERS = 48 * 32


@dataclass
class Counters(StepCounters):
    tokens: int = 0


class OneMore(Schedule):
    """The first matrix trains at first, both after a step; the second step is only measured."""

    policy = "reset"

    def __init__(self) -> None:
        super().__init__()
        self.start = frozenset(NAMES[:1])
        self.shown: list[float] = []

    @property
    def holds(self) -> bool:
        return len(self.shown) == 2

    def decide(self, steps: int) -> Decision | None:
        return Decision(frozenset(NAMES)) if steps == 1 else None

    def gradients(self, found: dict[str, torch.Tensor]) -> None:
        self.shown.append(float(found[NAMES[0]].norm()))


def test_what_is_counted() -> None:
    """Moved, held, without a signal, skipped; a run's counters may have more than these."""
    model = random_model("llama")
    named = dict(model.named_parameters())
    schedule = OneMore()
    prepared = Prepared(model, {name: named[name] for name in NAMES}, schedule=schedule)
    counters = Counters(tokens=7)
    stepper = Optimization(prepared, Optimizer(max_grad_norm=0.5), counters)

    def step(size: float, has_signal: bool = True) -> float:
        """All gradients of a tensor are `size` / sqrt(numbers), so that its norm is `size`."""
        stepper.switch()
        for parameter in prepared.active.values():
            parameter.grad = torch.full_like(parameter, size / NUMBERS**0.5)
        gradients = [weakref.ref(parameter.grad) for parameter in prepared.active.values()]
        norm = stepper.step(0.0, 1e-3, has_signal)
        assert all(gradient() is None for gradient in gradients), "nothing holds them"
        return norm

    def counted() -> list[int]:
        return list(asdict(counters).values())

    # Steps, skipped, in a row, shown, numbers that trained, decisions, bytes, tokens.
    assert step(3.0) == pytest.approx(3.0)
    assert counted() == [1, 0, 0, 1, 1536, 0, 12288, 7]
    assert step(3.0) == pytest.approx(3 * 2**0.5)
    assert counted() == [1, 0, 0, 2, 1536, 1, 12288, 7], "only measured"
    schedule.shown.append(0.0)
    step(4.0, has_signal=False)
    assert counted() == [2, 0, 0, 2, 1536 + 3072, 1, 24576, 7]
    step(float("nan"))
    step(float("nan"))
    assert counted() == [4, 2, 2, 2, 4608, 1, 24576, 7]
    step(1.0)
    assert counted() == [5, 2, 0, 3, 7680, 1, 24576, 7]
    assert schedule.shown == pytest.approx([3.0, 3.0, 0.0, 1.0]), "before clipping"
    with pytest.raises(RunStopped, match=r"the loss \(0\) or its gradient \(inf\) .* 3 steps"):
        for _ in range(3):
            step(float("inf"))
    assert counted() == [8, 5, 3, 3, 7680, 1, 24576, 7]
