"""Updates in a training loop by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import random_model
from modicum import updates
from modicum.config import Optimizer, TrainConfig
from modicum.training import session, step
from modicum.types import RunStopped, UserError
from modicum.updates import UPDATES
from modicum.updates.adapter import Adapter
from modicum.updates.base import Prepared, Selection
from modicum.updates.schedule import Decision, Schedule
from rows import IDS, batch_of, changed, values

# Selections and adapters differ in what trains, all others in how.
EXPRESSIONS = [
    text
    for cls in UPDATES.values()
    for text in cls.examples[: 1 if issubclass(cls, Selection | Adapter) else None]
]
STEPS = 4
NAME = "model.layers.{}.mlp.up_proj.weight".format


def by_hand(schedule: Schedule | None = None, layers: tuple[int, ...] = (1, 2)) -> Prepared:
    """One matrix trains in each of some layers."""
    model = random_model("llama")
    named = dict(model.named_parameters())
    return Prepared(model, {NAME(i): named[NAME(i)] for i in layers}, schedule=schedule)


def backward(prepared: Any, scale: float = 1.0) -> None:
    (prepared.model(input_ids=IDS).logits.square().mean() * scale).backward()


# The same as the package's own loop ------------------------------------------------------


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_the_driver_does_what_the_package_does(text: str, folders: dict[str, Path]) -> None:
    """Every update, on the same gradients: switches, moments, rates, clipping."""
    settings = Optimizer(learning_rate=1e-2, max_grad_norm=0.05)
    config = replace(TrainConfig(), model=str(folders["qwen2"]), update=text, optimizer=settings)
    own, other = session.prepare(config), session.prepare(config)
    # Without masters gradients stay where backward puts them.
    other.optimization.masters.drop(other.optimization.masters.held)
    try:
        driver = updates.Driver(other.prepared, settings.max_grad_norm)
    except UserError as error:
        assert "every group" in str(error)
        assert own.prepared.schedule.ever_by_group
        return
    optimizer = driver.optimizer(learning_rate=1e-2)
    driver.attach(optimizer, config.steps)
    for _ in range(STEPS):
        step.switch(own)
        driver.begin_step()
        other.policy.follow(other.prepared)
        step.optimizer_step(own, step.backward(own, batch_of(own), {})["loss"])
        step.backward(other, batch_of(other), {})
        driver.after_backward()
        optimizer.step()
        driver.after_step()
        optimizer.zero_grad()
    assert own.counters.signal_steps == driver.counters.signal_steps == STEPS
    assert own.prepared.active.keys() == other.prepared.active.keys()
    assert own.counters.decisions == len(driver.decisions)
    for name, parameter in own.prepared.trainable.items():
        found = other.prepared.trainable[name]
        if name in own.optimization.entries:  # a difference is added to the start at another time
            torch.testing.assert_close(found, parameter, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(found, parameter), name
    assert own.prepared.schedule.state() == other.prepared.schedule.state()
    frozen = len(other.prepared.frozen)
    assert driver.report().endswith(f"{frozen} frozen ones are bit-identical")


# A loop by hand --------------------------------------------------------------------------


class Turns(Schedule):
    """One matrix at a time, in order."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.start = frozenset([NAME(1)])

    def decide(self, steps: int) -> Decision | None:
        return Decision(frozenset([NAME(1 + steps % 2)]))


class Rates(Schedule):
    """Half a step for one matrix and none for the other; notes the norms that it is shown."""

    def __init__(self) -> None:
        super().__init__({NAME(1): 0.5, NAME(2): 0.0})
        self.norms: list[float] = []

    def gradients(self, found: Any) -> None:
        self.norms.append(float(found[NAME(1)].norm()))


def test_multipliers_hold_for_one_step_and_the_rate_scheduler_goes_on() -> None:
    """By hand: SGD moves a tensor by rate x multiplier x gradient."""
    prepared = by_hand(Rates(), layers=(0, 1, 2))
    optimizer = torch.optim.SGD(prepared.trainable.values(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 1 / (number + 1))
    driver = updates.Driver(prepared).attach(optimizer, 2)
    for rate in (0.5, 0.25):
        old = values(prepared.model)
        driver.begin_step()
        backward(prepared)
        driver.after_backward()
        optimizer.step()
        for layer, factor in ((0, 1.0), (1, 0.5), (2, 0.0)):
            parameter = prepared.trainable[NAME(layer)]
            wanted = old[NAME(layer)] - rate * factor * parameter.grad
            torch.testing.assert_close(parameter, wanted)
        driver.after_step()
        assert [len(group["params"]) for group in optimizer.param_groups] == [3]
        scheduler.step()
        optimizer.zero_grad()
    assert "2 of 3 trainable tensors changed, 1 had a gradient and did not change" in (
        driver.report()
    )


@pytest.mark.parametrize(
    ("policy", "has_state", "steps"), [("keep", True, 2), ("reset", False, 1), ("cpu", False, 2)]
)
def test_state_of_what_stops_follows_the_policy(policy: str, has_state: bool, steps: int) -> None:
    """After turns 1, 2, 1: AdamW counts the steps of a tensor in its state."""
    prepared = by_hand(Turns(policy))
    optimizer = torch.optim.AdamW(prepared.trainable.values(), lr=1e-2, weight_decay=0.1)
    driver = updates.Driver(prepared).attach(optimizer, 3)
    for number in range(3):
        old = values(prepared.model)
        driver.begin_step()
        name = NAME(1 + number % 2)
        assert {n for n, p in prepared.model.named_parameters() if p.requires_grad} == {name}
        prepared.model.requires_grad_(True)  # as PEFT does when an adapter was off for a while
        backward(prepared)
        driver.after_backward()
        optimizer.step()
        driver.after_step()
        assert changed(prepared.model, old) == {name}
        optimizer.zero_grad(set_to_none=False)
    there = {n for n, p in prepared.trainable.items() if p in optimizer.state}
    assert there == ({NAME(1), NAME(2)} if has_state else {NAME(1)})
    assert optimizer.state[prepared.trainable[NAME(1)]]["step"] == steps
    assert "2 of 2 trainable tensors changed, 1 of them rest now" in driver.report()


def test_only_the_entries_move_under_decay_and_momentum() -> None:
    where = torch.tensor([3, 40])
    prepared = by_hand(Schedule(entries={NAME(1): where}))
    optimizer = torch.optim.AdamW(prepared.trainable.values(), lr=1e-2, weight_decay=0.1)
    driver = updates.Driver(prepared).attach(optimizer, 2)
    old = values(prepared.model)
    for _ in range(2):
        driver.begin_step()
        backward(prepared)
        driver.after_backward()
        optimizer.step()
        driver.after_step()
        optimizer.zero_grad()
    moved = (prepared.trainable[NAME(1)] != old[NAME(1)]).flatten().nonzero().flatten()
    assert moved.tolist() == where.tolist()
    assert changed(prepared.model, old) == {NAME(1), NAME(2)}
    driver.report()
    with torch.no_grad():
        prepared.trainable[NAME(1)].flatten()[4] += 1
    with pytest.raises(RunStopped, match="has changed where it should not train"):
        driver.report()


def test_a_schedule_sees_gradients_before_the_driver_clips_them() -> None:
    schedule = Rates()
    prepared = by_hand(schedule)
    optimizer = torch.optim.SGD(prepared.trainable.values(), lr=0.1)
    driver = updates.Driver(prepared, max_grad_norm=0.01).attach(optimizer, 1)
    driver.begin_step()
    backward(prepared)
    grads = [p.grad.clone() for p in prepared.trainable.values()]
    driver.after_backward()
    assert schedule.norms == [float(grads[0].norm())]
    norm = float(torch.stack([grad.norm() for grad in grads]).norm())
    assert norm > 0.01
    for parameter, grad in zip(prepared.trainable.values(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad * 0.01 / norm)


def test_steps_without_a_signal_are_not_counted_and_not_finite_ones_are_skipped() -> None:
    prepared = by_hand(Turns("keep"))
    optimizer = torch.optim.AdamW(prepared.trainable.values(), lr=1e-2, weight_decay=0.1)
    driver = updates.Driver(prepared).attach(optimizer, 5)
    old = values(prepared.model)

    def take(scale: float) -> None:
        driver.begin_step()
        backward(prepared, scale)
        driver.after_backward()
        optimizer.step()
        driver.after_step()
        optimizer.zero_grad()

    take(0.0)
    assert (driver.steps, driver.counters.signal_steps) == (1, 0)
    old = values(prepared.model)
    take(float("nan"))
    take(float("inf"))
    assert (driver.counters.skipped, driver.counters.signal_steps) == (2, 0)
    assert changed(prepared.model, old) == set()
    take(1.0)
    assert driver.counters.signal_steps == 1
    take(float("nan"))
    take(float("nan"))
    with pytest.raises(RunStopped, match="not finite for 3 steps"):
        take(float("nan"))


def test_a_scaler_may_look_for_its_factor_as_long_as_it_likes() -> None:
    """accelerate's wrapper of an optimizer; fp16 begins with gradients that are not finite."""
    prepared = by_hand()
    bare = torch.optim.AdamW(prepared.trainable.values(), lr=1e-2)
    driver = updates.Driver(prepared)
    driver.attach(SimpleNamespace(optimizer=bare, scaler=object()), 5)
    for _ in range(5):
        driver.begin_step()
        backward(prepared, float("inf"))
        driver.after_backward()
        bare.step()
        driver.after_step()
    assert (driver.steps, driver.counters.skipped) == (5, 5)
    assert driver.report().startswith("0 of 2 trainable tensors changed, 28 frozen")


def test_what_goes_wrong_in_a_loop_is_said() -> None:
    prepared = updates.select("lisa(layers=1, every=1)").apply(random_model("llama"))
    driver = updates.Driver(prepared)
    with pytest.raises(UserError, match=r"call driver\.attach"):
        driver.begin_step()
    half = torch.optim.AdamW([p for p in prepared.model.parameters() if p.requires_grad])
    with pytest.raises(UserError, match=r"does not hold model\.layers"):
        driver.attach(half, 1)
    galore = updates.Driver(updates.select("galore(rank=4)").apply(random_model("llama")))
    with pytest.raises(UserError, match="has an optimizer of its own"):
        galore.attach(torch.optim.AdamW(galore.prepared.trainable.values()), 1)
    with pytest.raises(UserError, match="max_grad_norm must be at least 0"):
        updates.Driver(prepared, max_grad_norm=-1)
    other = by_hand()
    other.model.activation_checkpointing_enable({"use_reentrant": True})
    optimizer = torch.optim.SGD(other.trainable.values())
    with pytest.raises(UserError, match="reentrant gradient checkpointing"):
        updates.Driver(other).attach(optimizer, 1)
    coarse = updates.select("last(1)").apply(random_model("llama").bfloat16())
    with pytest.warns(UserWarning, match="too coarse for a learning rate of 1e-06"):
        updates.Driver(coarse).attach(
            torch.optim.SGD(coarse.trainable.values(), lr=1e-6), total_steps=1
        )


@pytest.mark.parametrize(
    ("name", "words"), [(NAME(0), "should be frozen"), (NAME(2), "rested and has changed")]
)
def test_a_change_of_what_should_not_is_found(name: str, words: str) -> None:
    prepared = by_hand(Turns("keep"))
    driver = updates.Driver(prepared)
    driver.attach(torch.optim.SGD(prepared.trainable.values()), 1)
    assert driver.report() == (
        "0 of 2 trainable tensors changed, 1 of them rest now, 28 frozen ones are bit-identical"
    )
    with torch.no_grad():
        prepared.model.get_parameter(name)[0, 0] += 1e-3
    with pytest.raises(RunStopped, match=f"{name} {words}"):
        driver.report()
