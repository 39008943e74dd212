"""LISA and BAdam against hand values: who trains when, and what the optimizer holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import random_model
from modicum import updates
from modicum.training.session import Session
from modicum.types import RunStopped
from modicum.updates.turns import BAdamRatio, RatioSchedule
from schedules import layer_of, numbers, schedule_of, session_of, walk

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
            float(states[made.optimization.masters.tensors[name]]["step"])
            for name in made.prepared.active
        }
        assert counts == {wanted}


@pytest.mark.parametrize(
    "update, again",
    [
        ("badam(every=1, blocks=1)", ".layers."),
        ("badam(every=1, blocks=2)", ".layers."),
        ("lisa(layers=3, every=1)", ".layers."),
        ("lisa(layers=1, every=1, ends=False)", ".layers."),
        ("badam_ratio(ratio=0.99, every=1)", ""),
    ],
)
def test_what_trains_in_the_next_turn_too_begins_anew(
    update: str, again: str, folders: dict[str, Path]
) -> None:
    """Every turn is of one step here, so that nothing has had two; what always trains goes on."""
    made = session_of(folders["llama"], update)
    repeated, before = 0, set[str]()
    for number in range(1, 15):
        (active,) = walk(made, 1)
        repeated += bool(before & {n for n in active if again in n})
        before = active
        held = made.optimization
        for name in active:
            count = int(held.optimizer.state[held.masters.held[name].leaf]["step"])
            assert count == (1 if again in name else number), name
    assert repeated >= 1, "the case is there"
    made.proof.check("test")


@pytest.mark.parametrize("policy", ["keep", "cpu"])
def test_moments_that_are_kept_go_on_in_the_next_turn(
    policy: str, folders: dict[str, Path]
) -> None:
    made = session_of(folders["llama"], f"badam(every=1, blocks=1, state='{policy}')")
    walk(made, 3)
    assert {int(s["step"]) for s in made.optimization.optimizer.state.values()} == {3}


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


def test_what_changed_beside_the_entries_is_found_when_others_take_their_turn(
    folders: dict[str, Path],
) -> None:
    """Afterwards it could not be told from their work."""
    made = session_of(folders["qwen2"], "badam_ratio(ratio=0.25, every=1)", rate=1e-2)
    walk(made, 2)
    name = "model.layers.1.mlp.up_proj.weight"
    beside = next(i for i in range(48 * 32) if i not in made.optimization.entries[name])
    with torch.no_grad():
        made.prepared.trainable[name].view(-1)[beside] += 1e-6
    with pytest.raises(RunStopped, match=rf"{name} has changed where it should not train"):
        walk(made, 1)


def test_entries_are_drawn_from_the_seed_and_differ_from_round_to_round() -> None:
    """In the second round the runs of neighbours start elsewhere."""
    parameters = {"a": nn.Parameter(torch.zeros(30, 20)), "b": nn.Parameter(torch.zeros(3))}
    one, same, other = [
        RatioSchedule(BAdamRatio(ratio=0.1, every=1), nn.Module(), parameters, seed)
        for seed in (1, 1, 2)
    ]
    for number in range(12):
        found = [s.decide(number).entries for s in (one, same, other)]
        assert torch.equal(found[0]["a"], found[1]["a"])
        assert not torch.equal(found[0]["a"], found[2]["a"])
        assert found[0]["b"].numel() == 1, "one at least"
        if number == 0:
            first = found[0]["a"]
        assert torch.equal(found[0]["a"], first) == (number == 0)
