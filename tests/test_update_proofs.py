"""The change proof, fp32 masters, and the warning about steps that are too small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import load
from conftest import random_model
from modicum import updates
from modicum.config import Compute, Optimizer, TrainConfig
from modicum.models.identity import combined, fingerprint, fingerprints
from modicum.models.precision import Masters, too_fine
from modicum.training import session
from modicum.training.step import backward, optimizer_step
from modicum.types import Batch, Row, RunStopped
from modicum.updates.members import FAR
from modicum.updates.optimizers import Sgd
from modicum.updates.proofs import ChangeProof

ROWS = tuple(Row((40, 41), (50 + i, 60), (-5.5, -5.5), (-1.0) ** i) for i in range(4))
TRAINS = "model.layers.2.mlp.up_proj.weight"


def prepared_proof(text: str = "last(1)", family: str = "llama") -> tuple[Any, ChangeProof]:
    prepared = updates.parse(text).apply(random_model(family), 0)
    return prepared, ChangeProof(prepared, Masters(prepared.trainable))


def flip(tensor: Tensor, bit: int) -> None:
    """Flip one bit of the last number, below autograd's sight."""
    with torch.no_grad():
        bits = tensor.data.reshape(-1)[-1:].view(torch.int32)
        bits ^= torch.tensor(1 << bit if bit < 31 else -(2**31), dtype=torch.int32)


def one_step(made: session.Session) -> float:
    sums = backward(made, Batch(ROWS, 4, 8, frozenset({0, 1})), {})
    return optimizer_step(made, sums["loss"])


def session_of(
    folder: Path, dtype: Any = "fp32", rate: float = 1e-2, rounding: Any = "nearest", **changes: Any
) -> Any:
    config = replace(
        TrainConfig(),
        model=str(folder),
        optimizer=Optimizer(learning_rate=rate),
        compute=Compute("cpu", dtype, rounding),
        **changes,
    )
    return session.prepare(config)


# Fingerprints ----------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 22, 30, 31])
def test_a_fingerprint_sees_a_single_bit(bit: int) -> None:
    tensor = torch.linspace(-1, 1, 1001)
    before = fingerprint(tensor)
    flip(tensor, bit)
    assert fingerprint(tensor) != before
    flip(tensor, bit)
    assert fingerprint(tensor) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fingerprint_tells_zero_from_minus_zero(dtype: torch.dtype) -> None:
    zero = torch.zeros(3, dtype=dtype)
    assert torch.equal(zero, -zero)
    assert fingerprint(zero) != fingerprint(-zero)


def test_a_fingerprint_is_of_values_shape_and_dtype_and_not_of_memory() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    assert fingerprint(tensor) == fingerprint(tensor.T.contiguous().T)
    assert fingerprint(tensor) == fingerprint(nn.Parameter(tensor.clone()))
    zeros = torch.zeros(2, 3)
    others = [zeros.T, zeros.view(6), zeros.bfloat16(), torch.zeros(2, 3, dtype=torch.int32)]
    assert len({fingerprint(t) for t in [zeros, *others]}) == 5
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor(2.0)), "numbers too"


def test_the_hash_of_many_depends_on_names_and_not_on_order() -> None:
    marks = fingerprints({"a": torch.zeros(2), "b": torch.ones(2)})
    assert combined(dict(reversed(marks.items()))) == combined(marks)
    assert combined({"a": marks["b"], "b": marks["a"]}) != combined(marks)
    assert combined({"a": marks["a"]}) != combined(marks)


# The change proof ------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["last(1)", "lora(rank=2)"])
def test_a_frozen_tensor_that_changes_stops_the_run(text: str) -> None:
    prepared, proof = prepared_proof(text)
    (name,) = [n for n in prepared.frozen if n.endswith("layers.0.input_layernorm.weight")]
    assert proof.check("start").startswith("0 of ")
    flip(prepared.frozen[name], 0)
    with pytest.raises(RunStopped, match=rf"\(step 3\): {name} should be frozen"):
        proof.check("step 3")
    flip(prepared.frozen[name], 0)
    proof.check("it is as it was")


def test_a_pushed_tensor_that_stays_stops_the_run() -> None:
    prepared, proof = prepared_proof()
    assert proof.waiting
    proof.push([TRAINS])
    with pytest.raises(RunStopped, match=rf"\(first step\): {TRAINS} trains and has not changed"):
        proof.check("first step")
    flip(prepared.trainable[TRAINS], 0)
    assert proof.check("first step").startswith("1 of 9 trainable tensors changed, 21 frozen")
    proof.push(prepared.trainable)
    assert not proof.waiting
    with pytest.raises(RunStopped, match="8 such tensors"):
        proof.check("end")


def test_a_tensor_without_a_gradient_need_not_change(folders: dict[str, Path]) -> None:
    """B starts at zero, so that A has no gradient in the first step, and has one later."""
    made = session_of(folders["llama"], update="lora(rank=2)", rate=1e-3)
    one_step(made)
    assert made.proof.pushed == {n for n in made.prepared.trainable if "lora_B" in n}
    assert made.proof.tried == made.proof.pushed
    assert made.proof.waiting
    made.proof.check("first step")
    one_step(made)
    assert made.proof.pushed == set(made.prepared.trainable)
    made.proof.check("second step")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_skipped_step_changes_and_pushes_nothing(value: float, folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], update="last(1)")
    before = fingerprints(made.prepared.trainable)
    for attempt in range(3):
        backward(made, Batch(ROWS, 4, 8, frozenset({0, 1})), {})
        if attempt == 2:
            with pytest.raises(RunStopped, match="3 steps in a row"):
                optimizer_step(made, value)
        else:
            optimizer_step(made, value)
    assert fingerprints(made.prepared.trainable) == before
    assert not made.proof.pushed and made.counters.skipped == 3
    assert all(p.grad is None for p in made.prepared.trainable.values())


# What a step is certain to move ----------------------------------------------------------

NORM = "model.layers.2.input_layernorm.weight"


def steps_at(made: session.Session, *rates: float) -> None:
    """A step at each of these rates, on the same rows."""
    for rate in rates:
        sums = backward(made, Batch(ROWS, 4, 8, frozenset({0, 1})), {})
        made.optimization.step(sums["loss"], rate)


def never(made: session.Session, name: str) -> None:
    """Plant a fault: whatever the optimizer does to this tensor is undone."""
    step, tensor = made.optimization.optimizer.step, made.optimization.masters.tensors[name]

    def undone() -> None:
        before = tensor.detach().clone()
        step()
        with torch.no_grad():
            tensor.copy_(before)

    made.optimization.optimizer.step = undone


def test_how_far_a_step_goes_by_hand() -> None:
    """Spacings: 2^-23 at 1 and above, 2^-24 below, 2^-22 at 2; at 0 the least number there is."""

    def spacings(
        values: list[float], gradient: list[float], rate: float, decay: float = 0
    ) -> float:
        tensor = torch.tensor(values)
        tensor.grad = torch.tensor(gradient)
        return Sgd().spacings("w", tensor, {}, {"lr": rate, "weight_decay": decay})

    assert spacings([1.5, -2.0], [1.0, 16.0], 2**-24) == 4
    assert spacings([1.5], [1.0], 2**-24) == 0, "it is rounded to even"
    assert spacings([0.75], [1.0], 2**-24) == 1
    assert spacings([0.0, 0.0], [0.0, 1.0], 1e-20) > FAR
    assert spacings([0.0, 0.0], [0.0, 0.0], 1.0) == 0
    assert spacings([1.5, -2.0], [1.0, 3.0], 0.0) == 0
    # A decay of 0.5 takes 1 off the second.
    assert spacings([1.5, -2.0], [0.0, 17.0], 2**-22, 0.5) == 16
    large, steps = [1.0] * (2**18) + [2**-10], [1.0] * (2**18 + 1)
    assert spacings(large, steps, 2**-25) == 256, "the last of many pieces"


@pytest.mark.parametrize(
    "update, moved",
    [("last(1)", 7), ("sgd @ last(1)", 1), ("galore(rank=4) @ last(1)", 7), ("full", 23)],
)
def test_a_rate_too_small_for_a_tensor_is_no_violation(
    update: str, moved: int, folders: dict[str, Path]
) -> None:
    """At 1e-9 the norms (all 1) stay, and the proof says so; what Adam moves else must move."""
    made = session_of(folders["llama"], update=update)
    steps_at(made, 1e-9, 1e-9)
    assert (made.prepared.trainable[NORM] == 1).all()
    assert made.proof.waiting and NORM in made.proof.tried - made.proof.pushed
    number = len(made.prepared.trainable)
    assert made.proof.check("first step") == (
        f"{moved} of {number} trainable tensors changed, {number - moved} had steps too small to"
        f" show in fp32, {30 - number} frozen ones are bit-identical"
    )


def test_after_a_warm_up_what_rested_must_move(folders: dict[str, Path]) -> None:
    """1e-6 over 100 steps: the first is 1e-8, the third 3e-8, which is above half a spacing."""
    made = session_of(folders["llama"], update="last(1)")
    steps_at(made, *(k * 1e-8 for k in range(1, 3)))
    assert NORM not in made.proof.pushed | made.proof.moved
    made.proof.check("first step")
    steps_at(made, *(k * 1e-8 for k in range(3, 101)))
    assert "9 of 9 trainable tensors changed, 21 frozen" in made.proof.check("end")
    never(made, TRAINS)
    assert "9 of 9" in made.proof.check("end")


@pytest.mark.parametrize(
    "name, rate, blamed", [(TRAINS, 1e-9, True), (NORM, 1e-9, False), (NORM, 1e-6, True)]
)
def test_what_should_move_and_never_does_stops_the_run(
    name: str, rate: float, blamed: bool, folders: dict[str, Path]
) -> None:
    made = session_of(folders["llama"], update="last(1)")
    never(made, name)
    steps_at(made, rate, rate)
    if blamed:
        words = rf"{name} trains .* \(1 such tensors\), though a step went .* spacings"
        with pytest.raises(RunStopped, match=words):
            made.proof.check("first step")
    else:
        made.proof.check("first step")


def test_a_tensor_that_is_missed_only_later_stops_the_run(folders: dict[str, Path]) -> None:
    """Too small a rate at first; when it has risen the fault shows, after a resume too."""
    made = session_of(folders["llama"], update="last(1)")
    never(made, NORM)
    steps_at(made, 1e-9)
    made.proof.check("first step")
    proof = made.proof
    proof.resume(proof.pushed, proof.moved, proof.tried)
    assert "2 had steps too small" in proof.check("resumed")
    steps_at(made, 1e-6)
    with pytest.raises(RunStopped, match=rf"{NORM} trains and has not changed \(1 such"):
        proof.check("later")


def test_a_tensor_that_the_optimizer_passes_over_stops_the_run(folders: dict[str, Path]) -> None:
    """At any rate."""
    made = session_of(folders["llama"], update="last(1)")
    (group,) = made.optimization.optimizer.param_groups
    group["params"] = [p for p in group["params"] if p is not made.prepared.trainable[NORM]]
    group["names"].remove(NORM)
    steps_at(made, 1e-9)
    words = rf"{NORM} trains and has not changed .* the optimizer has passed it over"
    with pytest.raises(RunStopped, match=words):
        made.proof.check("first step")


def test_a_step_of_a_spacing_may_be_taken_back(folders: dict[str, Path]) -> None:
    """Up by one, and down again: it has moved. A reset after large steps is a violation."""
    made = session_of(folders["llama"], update="sgd @ parts(norm)", rate=1.0)
    norms = made.prepared.trainable
    size = 2.0**-23

    def go(by: float) -> None:
        for parameter in norms.values():
            parameter.grad = torch.full_like(parameter, by)
        made.optimization.step(0.0, 1.0)

    go(-size)
    assert all((p == 1 + size).all() for p in norms.values())
    go(size)
    assert all((p == 1).all() for p in norms.values())
    assert made.proof.check("first step").startswith(f"{len(norms)} of {len(norms)}")
    go(-1e-3)
    made.proof.check("far")
    go(1e-3)
    with torch.no_grad():
        for parameter in norms.values():
            parameter.fill_(1)
    with pytest.raises(RunStopped, match="trains and has not changed"):
        made.proof.check("reset")


def test_multipliers_and_masters_count_in_what_must_move(folders: dict[str, Path]) -> None:
    """A multiplier of 0 moves nothing; a bf16 tensor has the spacing of its fp32 master."""
    made = session_of(folders["llama"], update="last(1)")
    made.prepared.schedule.weights = {TRAINS: 0.0, NORM: 100.0}
    steps_at(made, 1e-9)
    assert TRAINS not in made.proof.pushed and NORM in made.proof.moved
    coarse = session_of(folders["llama"], "bf16", update="last(1)")
    steps_at(coarse, 1e-6)
    assert NORM in coarse.proof.pushed | coarse.proof.moved
    assert coarse.proof.check("first step").startswith("9 of 9")


# Precision -------------------------------------------------------------------------------


def test_repeat_update_case() -> None:
    """LORA-09: small steps add up in the master; in bf16 alone none would be stored."""
    (case,) = load("repeat_update")
    given = case["input"]
    parameter = nn.Parameter(torch.full((4,), given["start"], dtype=torch.bfloat16))
    alone = parameter.detach().clone()
    masters = Masters({"w": parameter})
    optimizer = torch.optim.SGD(list(masters.tensors.values()), lr=given["delta"])
    for _ in range(given["steps"]):
        parameter.grad = torch.full_like(parameter, -1.0)
        masters.collect()
        assert parameter.grad is None, "gradients live in fp32"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        masters.publish()
        alone += given["delta"]
    (master,) = masters.tensors.values()
    assert master.dtype == torch.float32
    assert master.tolist() == pytest.approx([case["expected"]] * 4, abs=case["tol"])
    assert torch.equal(parameter, master.bfloat16())
    assert (alone == given["start"]).all()


def test_gradients_of_micro_batches_add_up_in_fp32() -> None:
    """1 + 2^-9 is not a bf16 number; added there, the second would be lost."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    masters = Masters({"w": parameter})
    for value in (1.0, 2.0**-9):
        parameter.grad = torch.full_like(parameter, value)
        masters.collect()
    assert masters.tensors["w"].grad is not None
    assert masters.tensors["w"].grad.item() == 1 + 2.0**-9


def test_fp32_needs_no_second_copy() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    assert Masters({"w": parameter}).tensors["w"] is parameter


def test_a_bf16_model_trains_with_masters_of_what_trains_alone(folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], "bf16", update="last(1)")
    assert all(p.dtype == torch.bfloat16 for p in made.prepared.model.parameters())
    assert made.optimization.masters.tensors.keys() == made.prepared.trainable.keys()
    start = {name: master.clone() for name, master in made.optimization.masters.tensors.items()}
    one_step(made)
    for name, master in made.optimization.masters.tensors.items():
        assert master.dtype == torch.float32
        assert not torch.equal(master, start[name])
        assert torch.equal(made.prepared.trainable[name], master.bfloat16())
    made.proof.check("first step")


@pytest.mark.parametrize("rate", [1e-6, 1e-5])
def test_steps_below_bf16_spacing_do_not_stop_the_run(
    rate: float, folders: dict[str, Path]
) -> None:
    """The masters move, and what adds up there reaches the model later."""
    made = session_of(folders["llama"], "bf16", rate=rate, update="full")
    before = fingerprints(made.prepared.trainable)
    one_step(made)
    same = [n for n, mark in fingerprints(made.prepared.trainable).items() if mark == before[n]]
    assert "model.norm.weight" in same, "1 - 1e-5 rounds to 1"
    assert made.proof.check("first step").startswith("30 of 30")


def test_a_weight_that_is_not_its_master_stops_the_run(folders: dict[str, Path]) -> None:
    made = session_of(folders["llama"], "bf16", update="last(1)")
    one_step(made)
    with torch.no_grad():
        made.prepared.trainable[TRAINS].mul_(2)
    with pytest.raises(RunStopped, match=rf"{TRAINS} is not its fp32 master"):
        made.proof.check("end")


def test_a_warning_where_steps_are_too_fine() -> None:
    """At a scale of 0.02 half a bf16 spacing is 7.8e-5, half an fp32 one 1.2e-9."""
    coarse = nn.Parameter(torch.full((8,), 0.02, dtype=torch.bfloat16))
    tensors = {"coarse": coarse, "fine": nn.Parameter(torch.full((8,), 0.02))}
    assert too_fine(tensors, 1e-4) == []
    assert too_fine(tensors, 1e-5) == ["coarse"]
    assert too_fine(tensors, 1e-6) == ["coarse"]
    assert too_fine(tensors, 1e-10) == ["coarse", "fine"]
    assert too_fine({"zero": nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}, 1e-6) == []
