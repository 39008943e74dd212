"""Schedules against hand values: who trains when, what the optimizer holds, cut runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import random_model
from helpers import engine_of, metrics_of, tensors_of
from modicum import runs, session, step, updates
from modicum.config import Compute, Optimizer, TrainConfig
from modicum.engine.logprobs import logprobs
from modicum.session import Session
from modicum.train import train
from modicum.types import Batch, Row, UserError
from modicum.updates.autofreeze import AutoFreeze, FreezingSchedule
from modicum.updates.slimfit import HUGE, SlimFitSchedule
from modicum.updates.surgical import FLOOR, RgnSchedule, SnrSchedule

ROWS = tuple(
    Row((40, 41 + i // 2), (50 + i, 60), (-5.5, -5.5), (-1.0) ** i, group=i // 2) for i in range(4)
)
BATCH = Batch(ROWS, 4, 8)


def session_of(folder: Path, update: str, dtype: Any = "fp32", rate: float = 1e-3, kl: float = 0):
    config = replace(
        TrainConfig(),
        model=str(folder),
        update=update,
        objective=f"grpo(kl={kl})",
        optimizer=Optimizer(learning_rate=rate),
        compute=Compute("cpu", dtype),
    )
    return session.prepare(config)


def walk(made: Session, steps: int) -> list[set[str]]:
    """So many rollouts of one step; what trained in each."""
    found = []
    for _ in range(steps):
        step.switch(made)
        found.append(set(made.prepared.active))
        step.optimizer_step(made, step.backward(made, BATCH, {})["loss"])
    return found


def layer_of(names: set[str] | frozenset[str]) -> list[int]:
    """The layers that these names lie in."""
    return sorted({int(name.split(".")[2]) for name in names if ".layers." in name})


def numbers(made: Session, names: set[str]) -> int:
    return sum(made.prepared.trainable[name].numel() for name in names)


def schedule_of(text: str, family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    return updates.parse(text).apply(random_model(family, **changes), seed).schedule


# Turns -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_a_round_of_blocks_trains_every_layer_once(order: str) -> None:
    prepared = updates.parse(f"badam(every=3, order={order})").apply(
        random_model("llama", layers=5), 4
    )
    schedule, rounds = prepared.schedule, []
    for number in range(10):
        decision = schedule.decide(3 * number)
        assert decision is not None and schedule.decide(3 * number + 2) is None
        (layer,) = layer_of(decision.active)
        assert decision.evidence == {"block": f"layer {layer}", "round": number // 5 + 1}
        rounds.append(layer)
    first, second = rounds[:5], rounds[5:]
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    if order == "random":
        assert first != second, "each round is shuffled anew"
        other = schedule_of("badam(every=3)", seed=5, layers=5)
        assert [layer_of(other.decide(3 * n).active)[0] for n in range(5)] != first
    else:
        assert first == second == sorted(first, reverse=order == "descending")
    union = frozenset().union(*schedule.blocks.values())
    assert union == {n for n in dict(prepared.model.named_parameters()) if ".layers." in n}
    assert union == prepared.trainable.keys()
    assert len(schedule.typical({})) == 5


def test_layers_in_blocks_and_the_ends_as_blocks() -> None:
    """The embedding is the first block, final norm and head the last; a tied head is the first."""
    untied = schedule_of("badam(order='ascending', blocks=2, ends=True)", layers=5)
    assert list(untied.blocks) == ["embedding", "layers 0 to 1", "layers 2 to 4", "norm and head"]
    assert untied.blocks["embedding"] == {"model.embed_tokens.weight"}
    assert untied.blocks["norm and head"] == {"model.norm.weight", "lm_head.weight"}
    assert layer_of(untied.blocks["layers 2 to 4"]) == [2, 3, 4]
    tied = schedule_of("badam(blocks=1, ends=True) @ (last(2) + parts(embedding, norm))", "qwen2")
    assert tied.blocks["embedding"] == {"model.embed_tokens.weight"}
    assert tied.blocks["norm and head"] == {"model.norm.weight"}
    assert layer_of(tied.blocks["layers 0 to 2"]) == [0, 1, 2], "the norms of layer 0"


def test_a_turn_is_at_least_so_many_steps_long() -> None:
    """A rollout that serves several steps rounds it up, whatever the turn before had."""
    schedule = schedule_of("badam(every=3)")
    decided = [steps for steps in range(0, 20, 2) if schedule.decide(steps) is not None]
    assert decided == [0, 4, 8, 12, 16]


def test_the_rate_rises_after_a_switch() -> None:
    """A step without a signal, before the first that has one, has the first rate too."""
    schedule = schedule_of("badam(every=6, warmup=4, order='descending')")
    for begin in (0, 6):
        decision = schedule.decide(begin)
        found = [schedule.rates(begin + taken) for taken in (0, 1, 2, 3, 4, 5)]
        for rates, wanted in zip(found, [0.25, 0.25, 0.5, 0.75], strict=False):
            assert rates == dict.fromkeys(decision.active, wanted)
        assert found[4] == found[5] == {}


def test_lisa_draws_layers_from_the_seed_and_number_of_the_draw() -> None:
    schedule = schedule_of("lisa(layers=2, every=1)", layers=5)
    drawn = [layer_of(schedule.decide(number).active) for number in range(30)]
    again = schedule_of("lisa(layers=2, every=1)", layers=5)
    assert drawn == [layer_of(again.decide(number).active) for number in range(30)]
    other = schedule_of("lisa(layers=2, every=1)", seed=1, layers=5)
    assert drawn != [layer_of(other.decide(number).active) for number in range(30)]
    assert {len(layers) for layers in drawn} == {2}
    assert {layer for layers in drawn for layer in layers} == {0, 1, 2, 3, 4}
    rng = np.random.default_rng([0, 7])
    assert drawn[7] == sorted(rng.choice([0, 1, 2, 3, 4], 2, replace=False).tolist())


@pytest.mark.parametrize("policy", ["reset", "keep", "cpu"])
@pytest.mark.parametrize(
    "method, dtype",
    [
        ("badam(every=1", "fp32"),
        ("badam(every=1", "bf16"),
        ("lisa(layers=1, every=1, ends=False", "fp32"),
    ],
)
def test_the_optimizer_holds_what_the_policy_says(
    method: str, policy: str, dtype: str, folders: dict[str, Path]
) -> None:
    """Eight bytes for each number: of what trains, of all that has trained, the rest parked."""
    made = session_of(folders["llama"], f"{method}, state='{policy}')", dtype)
    visited: set[str] = set()
    for _ in range(4):
        (active,) = walk(made, 1)
        visited |= active
        held = made.optimization
        here = visited if policy == "keep" else active
        assert held.state_bytes() == 8 * numbers(made, here)
        assert held.masters.held.keys() == (
            active if policy == "reset" or (policy, dtype) == ("cpu", "bf16") else visited
        )
        parked = visited - active if policy == "cpu" else set()
        assert held.parked.keys() == parked
        found = sum(t.numel() for state in held.parked.values() for t in state.values() if t.dim())
        kinds = 3 if dtype == "bf16" else 2  # both moments, and the fp32 master
        assert found == kinds * numbers(made, parked)
    assert visited > active


def test_moments_of_a_block_begin_anew(folders: dict[str, Path]) -> None:
    """Bias correction too: the first steps of a turn are full ones, those of `keep` go on."""
    for policy, wanted in (("reset", 2), ("keep", 4)):
        made = session_of(folders["llama"], f"badam(every=2, blocks=1, state='{policy}')")
        made.prepared.schedule.blocks = dict(
            zip("ab", [frozenset(part) for part in halves(made)], strict=True)
        )
        walk(made, 6)  # a b a, or b a b
        states = made.optimization.optimizer.state
        counts = {
            float(states[made.masters.tensors[name]]["step"]) for name in made.prepared.active
        }
        assert counts == {wanted}


def halves(made: Session) -> tuple[set[str], set[str]]:
    names = set(made.prepared.trainable)
    first = {name for name in names if ".layers.0." in name}
    return first, names - first


# Entries in turns ------------------------------------------------------------------------


def test_a_round_of_entries_trains_each_once(folders: dict[str, Path]) -> None:
    made = session_of(folders["qwen2"], "badam_ratio(ratio=0.25, every=1)", rate=1e-2)
    trainable = made.prepared.trainable
    start = {name: p.detach().clone().flatten() for name, p in trainable.items()}
    seen: dict[str, list[Tensor]] = {name: [] for name in trainable}
    for _ in range(4):
        before = {name: p.detach().clone().flatten() for name, p in trainable.items()}
        walk(made, 1)
        for name, where in made.optimization.entries.items():
            assert where.numel() == round(0.25 * trainable[name].numel())
            changed = (trainable[name].detach().flatten() != before[name]).nonzero().flatten()
            assert set(changed.tolist()) <= set(where.tolist()), name
            seen[name].append(where)
        count = sum(where.numel() for where in made.optimization.entries.values())
        assert made.active_parameters == count
        assert made.optimization.state_bytes() == 8 * count, "moments of the last entries alone"
    for name, turns in seen.items():
        assert torch.cat(turns).sort()[0].tolist() == list(range(trainable[name].numel())), name
    up = trainable["model.layers.1.mlp.up_proj.weight"].detach().flatten()
    assert (up != start["model.layers.1.mlp.up_proj.weight"]).float().mean() > 0.95
    assert "bit-identical" in made.proof.check("test")


def test_entries_are_drawn_from_the_seed_and_differ_from_round_to_round() -> None:
    """In the second round the runs of neighbours start elsewhere."""
    parameters = {"a": nn.Parameter(torch.zeros(30, 20)), "b": nn.Parameter(torch.zeros(3))}
    one, same, other = [
        updates.badam.RatioSchedule(parameters, 0.1, 1, seed)
        for seed in (1, 1, 2)  # type: ignore[attr-defined]
    ]
    for number in range(12):
        found = [s.decide(number).entries for s in (one, same, other)]
        assert torch.equal(found[0]["a"], found[1]["a"])
        assert not torch.equal(found[0]["a"], found[2]["a"])
        assert found[0]["b"].numel() == 1, "one at least"
        if number == 0:
            first = found[0]["a"]
        assert torch.equal(found[0]["a"], first) == (number == 0)


# Weights by gradients --------------------------------------------------------------------


def parameters_of(values: Mapping[str, list[float]]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.tensor(value)) for name, value in values.items()}


THREE = parameters_of({"a": [3.0, 4.0], "b": [0.6, 0.8], "c": [0.0, 0.0]})


def gradients(a: float, b: float, c: float) -> dict[str, Tensor]:
    """Of these norms."""
    return {name: torch.tensor([0.0, size]) for name, size in {"a": a, "b": b, "c": c}.items()}


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_relative_gradient_norms_by_hand(scale: float) -> None:
    """|p| is 5, 1 and nothing, which counts as sqrt(2)/1000; only the window's steps count."""
    schedule = RgnSchedule(THREE, every=4, window=2, reset=True)
    assert schedule.decide(0) is None and schedule.rates(1) == {}
    zero = FLOOR * 2**0.5
    for a, b in ((1.0, 0.5), (2.0, 0.7)):
        schedule.gradients(gradients(a * scale, b * scale, 0.24 * zero * scale))
    decision = schedule.decide(2)
    assert decision is not None and decision.restart and decision.active == {"a", "b", "c"}
    # Means of 1/5 and 2/5, of 0.5 and 0.7, and 0.24.
    wanted = {"a": 0.5, "b": 1.0, "c": 0.4}
    assert schedule.rates(3) == pytest.approx(wanted, rel=1e-6)
    assert list(decision.evidence["top"]) == ["b", "a", "c"]
    assert decision.evidence["moving"] == 3
    for sizes in ((9, 9, 9), (9, 9, 9), (1, 0.1, 0), (1, 0.3, 0)):
        assert schedule.decide(schedule.seen) is None
        schedule.gradients(gradients(*sizes))
    assert schedule.rates(6) == pytest.approx(wanted, rel=1e-6), "as long as nothing is new"
    assert schedule.decide(6) is not None
    assert schedule.rates(7) == pytest.approx({"a": 1.0, "b": 1.0, "c": 0.0})


def test_multipliers_are_the_rates_of_the_steps(folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], "rgn(every=3, window=2)")
    walk(made, 2)
    assert [group["lr"] for group in made.optimization.optimizer.param_groups] == [1e-3]
    before = {name: p.detach().clone() for name, p in made.prepared.trainable.items()}
    walk(made, 1)
    weights = made.prepared.schedule.weights
    assert max(weights.values()) == 1 and len(set(weights.values())) > 20
    for group in made.optimization.optimizer.param_groups:
        for name in group["names"]:
            assert group["lr"] == pytest.approx(1e-3 * weights[name])
    # The reset makes the next step of Adam the rate itself, up to its epsilon.
    for name, old in before.items():
        step_size = (made.prepared.trainable[name].detach() - old).abs().max().item()
        assert step_size == pytest.approx(1e-3 * weights[name], rel=0.05, abs=2e-7), name


def test_without_reset_the_moments_stay(folders: dict[str, Path]) -> None:
    for reset, wanted in ((True, 1), (False, 3)):
        made = session_of(folders["llama"], f"rgn(every=2, window=2, reset={reset})")
        walk(made, 3)
        counts = {float(s["step"]) for s in made.optimization.optimizer.state.values()}
        assert counts == {wanted}


def test_signal_to_noise_by_hand() -> None:
    """a: 1 and 3, 2 and 2; b: 1 and -1; c: nothing. The unbiased variance is over groups."""
    schedule = SnrSchedule(THREE, every=3, window=1, reset=False, threshold=0.5)
    assert schedule.by_group
    # a: means 2 and 1, variances 2 and 2, so (4/2 + 1/2)/2; b: mean 1, variance 2.
    for a, b in (([1.0, 0.0], [0.0, 0.0]), ([3.0, 2.0], [2.0, 2.0])):
        schedule.group_gradients({"a": torch.tensor(a), "b": torch.tensor(b), "c": torch.zeros(2)})
    bad = {"a": torch.tensor([float("nan"), 0.0]), "b": torch.ones(2), "c": torch.ones(2)}
    schedule.group_gradients(bad)
    schedule.gradients({})
    decision = schedule.decide(1)
    assert decision is not None and not decision.restart
    assert decision.evidence["top"] == pytest.approx({"a": 1.25, "b": 0.5, "c": 0.0})
    assert schedule.rates(2) == {"a": 1.0, "b": 0.0, "c": 0.0}
    # 0.5 / 1.25 is 0.4, so a threshold of 0.4 lets b step as well.
    assert SnrSchedule(THREE, 3, 1, True, 0.39).weigh({"a": 1.25, "b": 0.5, "c": 0.0})["b"] == 1
    assert SnrSchedule(THREE, 3, 1, True, 0.5).weigh({"a": 2.0, "b": 2.0}) == {"a": 1, "b": 1}
    # Nothing is measured in steps 2 and 3, the window is step 4.
    for _ in range(2):
        assert not schedule.by_group
        schedule.gradients({})
        assert schedule.decide(schedule.seen) is None
    assert schedule.by_group
    schedule.group_gradients(gradients(1, 1, 1))
    schedule.gradients({})
    assert schedule.decide(4) is None, "one group has no variance"
    schedule.group_gradients(gradients(1, 2, 1))
    schedule.gradients({})
    assert schedule.decide(5) is not None


def test_the_variance_is_that_of_all_groups_of_the_window() -> None:
    schedule = SnrSchedule(THREE, every=9, window=4, reset=True, threshold=0.5)
    random = torch.Generator().manual_seed(0)
    shown = [torch.randn(2, generator=random) + 1 for _ in range(12)]
    for gradient in shown:
        schedule.group_gradients({"a": gradient})
    stacked = torch.stack(shown).double()
    wanted = (stacked.mean(0) ** 2 / stacked.var(0)).mean()
    assert schedule.measure() == pytest.approx({"a": float(wanted)}, rel=1e-5)


def test_only_tensors_with_much_signal_step(folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], "snr(every=5, window=2, threshold=0.3)", rate=1e-2)
    asked = []
    for _ in range(4):
        step.switch(made)
        asked.append(made.prepared.schedule.by_group)
        before = {name: p.detach().clone() for name, p in made.prepared.trainable.items()}
        step.optimizer_step(made, step.backward(made, BATCH, {})["loss"])
        weights = made.prepared.schedule.weights
        for name, old in before.items():
            moved = not torch.equal(made.prepared.trainable[name], old)
            assert moved == (weights.get(name, 1) == 1), name
    assert asked == [True, True, False, False]
    assert 0 < sum(weights.values()) < len(weights)


# AutoFreeze ------------------------------------------------------------------------------

FOUR = {n: frozenset({f"layer{n}"}) for n in range(4)}


def freezing(**arguments: Any) -> FreezingSchedule:
    """Four layers of one tensor, an embedding and a head."""
    method = AutoFreeze(**{"intervals": 5, **arguments})
    schedule = FreezingSchedule(FOUR, frozenset({"embed"}), frozenset({"head"}), method)
    schedule.plan(10)
    return schedule


def interval(schedule: FreezingSchedule, number: int, norms: Mapping[int, float]) -> Any:
    """Two steps whose summed gradients have these L1 norms; each step's are far larger."""
    for sign in (1, -1):
        found = {
            f"layer{n}": torch.tensor([64.0 * sign + size / 4, size / -4])
            for n, size in norms.items()
        }
        schedule.gradients({**found, "embed": torch.ones(3), "head": torch.ones(3)})
        if sign > 0:
            assert schedule.decide(2 * number - 1) is None
    return schedule.decide(2 * number)


def test_freezing_by_hand() -> None:
    schedule = freezing()
    everything = {"embed", "layer0", "layer1", "layer2", "layer3", "head"}
    first = interval(schedule, 1, {0: 4, 1: 4, 2: 4, 3: 4})
    assert first.active == everything and not first.restart and first.evidence["lowest"] == 0
    # eta 0.025, 0.5, 0.25, 0.75; their median 0.375.
    second = interval(schedule, 2, {0: 3.9, 1: 2, 2: 3, 3: 1})
    assert list(second.evidence["change"].values()) == pytest.approx(
        [0.025, 0.5, 0.25, 0.75], rel=1e-3
    )
    assert second.evidence["threshold"] == pytest.approx(0.375, rel=1e-3)
    assert second.active == {"layer1", "layer2", "layer3", "head"}, "the embedding rests as well"
    assert second.restart
    # eta 0, 0.1, 0.5; the median is 0.1. A layer that is frozen is not looked at.
    third = interval(schedule, 3, {1: 2, 2: 2.7, 3: 0.5})
    assert third.active == {"layer2", "layer3", "head"}
    # Nothing changes: all eta are 0, as is the threshold, and the bottom stays where it is.
    fourth = interval(schedule, 4, {2: 2.7, 3: 0.5})
    assert fourth.active == third.active and fourth.restart
    fifth = interval(schedule, 5, {2: 2.7, 3: 5})
    assert fifth.active == {"layer3", "head"}
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
    assert smooth.norms == pytest.approx({0: 5, 1: 4, 2: 3.5, 3: 4})
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
    schedule = SlimFitSchedule(UNITS, frozenset({"bias"}), 0.6, "keep", 0)
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
    schedule = SlimFitSchedule(UNITS, frozenset(), 0.6, "keep", 3)
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
    before = {name: made.masters.tensors[name].detach().clone() for name in chosen}
    step.optimizer_step(made, step.backward(made, BATCH, {})["loss"])
    for name, old in before.items():
        new = made.masters.tensors[name].detach()
        wanted = float(((new - old).abs() / (old.abs() + 1e-8)).mean())
        assert wanted > 0
        assert made.prepared.schedule.distances[name] == pytest.approx(wanted, rel=1e-6)


# Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("badam(every=0)", "every must be at least 1"),
        ("badam(order='up')", "order is 'up'; .*ascending, descending, random"),
        ("badam(blocks=4)", "only 3 layers to make blocks of"),
        ("badam @ parts(head)", "no layer is selected; ends=True"),
        ("badam(state='drop')", "state is 'drop'"),
        ("badam_ratio(ratio=1)", "above 0 and below 1"),
        ("rgn(every=4)", "window must be at least 1 and at most every"),
        ("snr(threshold=2)", "threshold must be between 0 and 1"),
        ("autofreeze(intervals=0)", "intervals must be at least 1"),
        ("autofreeze(ema=1)", "ema at least 0 and below 1"),
        ("autofreeze @ parts(head)", "no decoder layer is selected"),
        ("slimfit(rate=1)", "at least 0 and below 1"),
        ("lisa(layers=4)", "only 3 layers to draw from"),
    ],
)
def test_what_cannot_be_is_a_user_error(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        updates.parse(text).apply(random_model("llama"))


def test_slimfit_needs_units() -> None:
    with pytest.raises(UserError, match="no matrix or norm is selected"):
        updates.parse("slimfit @ parts(bias)").apply(random_model("qwen2"))


# The reference, and cut runs -------------------------------------------------------------


def test_the_reference_is_the_base_whatever_has_trained_below(folders: dict[str, Path]) -> None:
    """Layer 0 has trained and rests: the frozen part is no longer that of the base."""
    made = session_of(folders["llama"], "lisa(layers=1, every=1, ends=False)", rate=1e-2, kl=0.05)
    visited: set[int] = set()
    while not (0 in visited and made.prepared.lowest_layer > 0):
        visited |= set(layer_of(walk(made, 1)[0]))
    references: step.References = {}
    step.backward(made, BATCH, references)
    (found,) = references.values()
    settings = made.config.sampling
    with torch.no_grad():
        base = logprobs(engine_of(random_model("llama")), ROWS, settings)[0]
        policy = logprobs(engine_of(made.prepared.model), ROWS, settings)[0]
    torch.testing.assert_close(found, base, atol=1e-5, rtol=0)
    assert (policy - base).abs().max() > 0.01


@pytest.mark.parametrize(
    "update",
    [
        "lisa(layers=1, every=5, state='cpu')",
        "badam(every=5, warmup=3)",
        "badam_ratio(ratio=0.25, every=5)",
        "autofreeze(intervals=4)",
        "slimfit",
        "rgn(every=3, window=2)",
    ],
)
def test_a_cut_run_goes_on_as_if_it_were_whole(
    quick: TrainConfig, tmp_path: Path, update: str
) -> None:
    """Its checkpoint, after 4 steps, falls into a turn, an interval or a window."""
    made = replace(
        quick,
        update=update,
        steps=4,
        objective="grpo(kl=0.01)",
        batch=replace(quick.batch, updates_per_rollout=2),
        sampling=replace(quick.sampling, max_tokens=8),
        evaluation=replace(quick.evaluation, eval_problems=0),
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    wanted = train(replace(made, out=str(whole)))
    # As a kill in the fourth step leaves it, with lines in the logs that no checkpoint has.
    shutil.copytree(whole, cut)
    (cut / "result.json").unlink()
    first, *later = runs.checkpoints(cut)
    for folder in later:
        shutil.rmtree(folder)
    assert runs.read_checkpoint(first)[1]["signal_steps"] == 4
    found = train(replace(made, out=str(cut)), resume=True)
    assert metrics_of(whole) == metrics_of(cut)
    assert tensors_of(whole) == tensors_of(cut)
    assert found["change_proof"] == wanted["change_proof"]
    lines = [(folder / "decisions.jsonl").read_text() for folder in (whole, cut)]
    assert lines[0] == lines[1] and lines[0].count("\n") > 1
