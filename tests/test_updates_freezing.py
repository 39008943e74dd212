"""AutoFreeze and SlimFit against hand values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum.training import step
from modicum.updates.freezing import HUGE, AutoFreeze, FreezingSchedule, SlimFit, SlimFitSchedule
from schedules import BATCH, Bare, numbers, session_of, walk

# AutoFreeze ------------------------------------------------------------------------------

FOUR = Bare(dict.fromkeys(("embed.w", *(f"layers.{n}.w" for n in range(4)), "head.w"), (3,)))


def freezing(**arguments: Any) -> FreezingSchedule:
    """Four layers of one tensor, an embedding and a head."""
    method = AutoFreeze(**{"intervals": 5, **arguments})
    schedule = FreezingSchedule(method, FOUR, dict(FOUR.named_parameters()), 0)
    schedule.plan(10)
    return schedule


def interval(schedule: FreezingSchedule, number: int, norms: Mapping[int, float]) -> Any:
    """Two steps whose summed gradients have these L1 norms; each step's are far larger."""
    for sign in (1, -1):
        found = {
            f"layers.{n}.w": torch.tensor([64.0 * sign + size / 4, size / -4])
            for n, size in norms.items()
        }
        schedule.gradients({**found, "embed.w": torch.ones(3), "head.w": torch.ones(3)})
        if sign > 0:
            assert schedule.decide(2 * number - 1) is None
    return schedule.decide(2 * number)


def test_freezing_by_hand() -> None:
    schedule = freezing()
    everything = {"embed.w", "layers.0.w", "layers.1.w", "layers.2.w", "layers.3.w", "head.w"}
    first = interval(schedule, 1, {0: 4, 1: 4, 2: 4, 3: 4})
    assert first.active == everything and not first.restart and first.evidence["lowest"] == 0
    # eta 0.025, 0.5, 0.25, 0.75; their median 0.375.
    second = interval(schedule, 2, {0: 3.9, 1: 2, 2: 3, 3: 1})
    assert list(second.evidence["change"].values()) == pytest.approx(
        [0.025, 0.5, 0.25, 0.75], rel=1e-3
    )
    assert second.evidence["threshold"] == pytest.approx(0.375, rel=1e-3)
    assert second.active == {"layers.1.w", "layers.2.w", "layers.3.w", "head.w"}, (
        "the embedding rests as well"
    )
    assert second.restart
    # eta 0, 0.1, 0.5; the median is 0.1. A layer that is frozen is not looked at.
    third = interval(schedule, 3, {1: 2, 2: 2.7, 3: 0.5})
    assert third.active == {"layers.2.w", "layers.3.w", "head.w"}
    # Nothing changes: all eta are 0, as is the threshold, and the bottom stays where it is.
    fourth = interval(schedule, 4, {2: 2.7, 3: 0.5})
    assert fourth.active == third.active and fourth.restart
    fifth = interval(schedule, 5, {2: 2.7, 3: 5})
    assert fifth.active == {"layers.3.w", "head.w"}
    sixth = interval(schedule, 6, {3: 5})
    assert sixth.active == fifth.active, "the last layer stays"


def test_freezing_with_other_arguments() -> None:
    """A norm of 0 before gives no change; percentiles; smoothed norms; moments that stay."""
    schedule = freezing(percentile=100, state="keep")
    interval(schedule, 1, {0: 0, 1: 4, 2: 4, 3: 4})
    found = interval(schedule, 2, {0: 9, 1: 5, 2: 8, 3: 6})
    assert found.evidence["change"] == pytest.approx({0: 0, 1: 0.25, 2: 1, 3: 0.5})
    assert found.evidence["lowest"] == 2 and not found.restart
    smooth = freezing(ema=0.75, percentile=0)
    interval(smooth, 1, {0: 4, 1: 4, 2: 4, 3: 4})
    found = interval(smooth, 2, {0: 8, 1: 4, 2: 2, 3: 4})
    assert found.evidence["change"] == pytest.approx({0: 0.25, 1: 0, 2: 0.125, 3: 0})
    assert smooth.norms == pytest.approx({"0": 5, "1": 4, "2": 3.5, "3": 4})
    assert found.evidence["lowest"] == 0


def test_backward_stops_at_what_is_frozen(folders: dict[str, Path]) -> None:
    """The lowest layer rises in a session, too, and the rate's schedule does not see it."""
    made = session_of(folders["llama"], "autofreeze(intervals=20)")
    made.prepared.schedule.plan(40)
    lowest = []
    for _ in range(7):
        walk(made, 1)
        lowest.append(made.prepared.lowest_layer)
        held = made.optimization
        assert held.state_bytes() == 8 * numbers(made, set(made.prepared.active))
        assert held.optimizer.param_groups[0]["lr"] == 1e-3
    assert lowest == [-1] * 6 + [1]


# SlimFit ---------------------------------------------------------------------------------

UNITS = ["a", "b", "c", "d", "e"]


def slimfit(names: list[str], seed: int) -> SlimFitSchedule:
    """Matrices, and a bias."""
    model = Bare({name: (2,) if name == "bias" else (2, 2) for name in names})
    return SlimFitSchedule(SlimFit(0.6), model, dict(model.named_parameters()), seed)


def drive(schedule: SlimFitSchedule, relative: Mapping[str, float]) -> set[str]:
    """One rollout in which what trains moves by its share of itself; what trained."""
    schedule.decide(0)
    values = {name: torch.tensor([1.0, -2.0]) for name in UNITS}
    schedule.stepping(values)
    moved = {name: value * (1 + relative[name]) for name, value in values.items()}
    schedule.stepped(moved, {})
    return set(schedule.chosen)


def test_every_unit_is_tried_and_then_those_that_move_most_train() -> None:
    """At a constant rate the choice then never changes: it has locked in."""
    schedule = slimfit([*UNITS, "bias"], 0)
    assert schedule.count == 2, "5 units, of which int(3.0) rest"
    assert max(schedule.distances.values()) > HUGE / 100
    relative = {"a": 0.5, "b": 0.1, "c": 0.4, "d": 0.2, "e": 0.3}
    tried = [drive(schedule, relative) for _ in range(3)]
    assert set().union(*tried[:3]) == set(UNITS) and not schedule.untried
    assert schedule.distances == pytest.approx(relative, rel=1e-5)
    decision = schedule.decide(0)
    assert decision is not None and decision.active == {"a", "c", "bias"}
    assert decision.evidence["farthest"] == pytest.approx(relative, rel=1e-5)
    assert decision.evidence["untried"] == 0
    for _ in range(5):
        assert drive(schedule, relative) == {"a", "c"}
        assert schedule.decide(0) is None


def test_a_falling_rate_brings_back_what_rests() -> None:
    schedule = slimfit(UNITS, 3)
    relative = {"a": 0.5, "b": 0.1, "c": 0.4, "d": 0.2, "e": 0.3}
    trained = [drive(schedule, {n: r * 0.7**t for n, r in relative.items()}) for t in range(12)]
    assert set().union(*trained[6:]) == set(UNITS)


def test_slimfit_units_and_biases(folders: dict[str, Path]) -> None:
    made = session_of(folders["qwen2"], "slimfit")
    schedule = made.prepared.schedule
    biases = {name for name in made.prepared.trainable if name.endswith(".bias")}
    assert schedule.always == biases and len(biases) == 9
    assert set(schedule.distances) == made.prepared.trainable.keys() - biases
    trained = walk(made, 10)
    units = len(schedule.distances)
    assert all(len(active) == 9 + units - int(0.9 * units) for active in trained)
    assert all(biases <= active for active in trained)
    assert set().union(*trained) == made.prepared.trainable.keys(), "29 units, 3 at a time"
    visited = set().union(*trained)
    assert made.optimization.state_bytes() == 8 * numbers(made, visited), "keep"


def test_distances_are_those_of_the_masters(folders: dict[str, Path]) -> None:
    """In bf16 steps of 1e-6 hardly ever show in the weights; the distance is measured all the same."""
    made = session_of(folders["llama"], "slimfit", "bf16", rate=1e-6)
    step.switch(made)
    chosen = made.prepared.schedule.chosen
    before = {name: made.optimization.masters.tensors[name].detach().clone() for name in chosen}
    step.optimizer_step(made, step.backward(made, BATCH, {})["loss"])
    for name, old in before.items():
        new = made.optimization.masters.tensors[name].detach()
        wanted = float(((new - old).abs() / (old.abs() + 1e-8)).mean())
        assert wanted > 0
        assert made.prepared.schedule.distances[name] == pytest.approx(wanted, rel=1e-6)
