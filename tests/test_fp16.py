"""fp16: gradients that would vanish are scaled, overflows are tried again, runs resume."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import metrics_of, tensors_of
from modicum.config import Compute, Optimizer, TrainConfig
from modicum.models.precision import LossScale, Masters
from modicum.models.rounding import key_of, neighbours, rounded
from modicum.training import session, step
from modicum.training.loop import Observer, train
from modicum.types import RunStopped

FP16, N = torch.float16, 2**16


class Cut(Exception):
    """The process dies here."""


class Dies(Observer):
    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, metrics: dict[str, float]) -> None:
        self.after -= 1
        if not self.after:
            raise Cut


def half(config: TrainConfig, update: str, out: Path, **changes: Any) -> TrainConfig:
    compute = Compute("cpu", "fp16", agreement_every=1)
    made = replace(config, update=update, out=str(out), compute=compute, **changes)
    return replace(made, optimizer=Optimizer(learning_rate=1e-3))


# The scale -------------------------------------------------------------------------------


def test_the_scale_halves_and_doubles() -> None:
    scale = LossScale(on=True)
    assert (scale.value, scale.fall(), scale.value) == (65536.0, True, 32768.0)
    for _ in range(1999):
        scale.stepped()
    assert scale.value == 32768.0
    scale.stepped()
    assert (scale.value, scale.calm) == (65536.0, 0)
    scale.value = 1.0
    assert not scale.fall() and scale.value == 1.0


def test_without_fp16_it_is_one_for_good() -> None:
    scale = LossScale.of(torch.nn.Linear(2, 2).bfloat16())
    assert not scale.on and not scale.fall()
    for _ in range(4000):
        scale.stepped()
    assert scale.value == 1.0


def test_a_gradient_that_would_vanish_arrives() -> None:
    """1e-8 is below half of fp16's least number, 6e-8; so is not 1e-8 times 65,536."""
    parameter = torch.nn.Parameter(torch.ones(3, dtype=FP16))
    for scale, arrives in ((LossScale(), 0.0), (LossScale(on=True), 1e-8)):
        masters = Masters({"w": parameter}, scale=scale)
        (parameter.float().sum() * 1e-8 * scale.value).backward()
        masters.collect()
        grad = masters.tensors["w"].grad
        assert grad is not None
        assert grad.tolist() == pytest.approx([arrives] * 3, rel=1e-3)


def test_of_an_fp32_tensor_the_gradient_is_that_of_the_loss() -> None:
    """Adapters stay in fp32; several micro-batches add up, each divided once."""
    parameter = torch.nn.Parameter(torch.ones(2))
    masters = Masters({"a": parameter}, scale=LossScale(on=True))
    for factor in (0.25, 0.5):
        (parameter.sum() * factor * masters.scale.value).backward()
        masters.collect()
    grad = masters.tensors["a"].grad
    assert grad is not None and grad.tolist() == [0.75, 0.75]
    with torch.no_grad():
        masters.tensors["a"].add_(1.0)
    masters.publish()
    assert parameter.tolist() == [2.0, 2.0]


# Rounding --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lower", "spacing"), [(1.0, 2.0**-10), (-0.25, -(2.0**-12)), (0.0, 2.0**-24)]
)
@pytest.mark.parametrize("chance", [1 / 256, 0.25, 0.875])
def test_the_chance_is_the_remainder(lower: float, spacing: float, chance: float) -> None:
    found = rounded(torch.full((N,), lower + chance * spacing), FP16, (1, -2)).double()
    up = found == lower + spacing
    assert (up | (found == lower)).all()
    assert abs(int(up.sum()) - N * chance) < 5 * math.sqrt(N * chance * (1 - chance))


def test_what_fp16_holds_stays_and_what_it_does_not_is_beside() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(FP16)
    known = every[~every.isnan()]
    assert torch.equal(rounded(known.float(), FP16, (3, 4)), known)
    assert (
        rounded(torch.tensor([65519.0, 65520.0, 1e6]), FP16, (3, 4)).tolist()[1:] == [math.inf] * 2
    )
    value = torch.tensor([1.0014])
    drawn = {rounded(value, FP16, key_of(0, at, "w")).item() for at in range(50)}
    assert sorted(drawn) == sorted(float(side) for side in neighbours(value, FP16))


# Runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "update", ["full", "last(1)", "lora(rank=4)", "sparse(keep=0.05)", "lisa(layers=1, every=2)"]
)
def test_a_run_learns_what_it_does_in_fp32_and_resumes(
    update: str, quick: TrainConfig, tmp_path: Path
) -> None:
    """Gradient norms of the first step are those of fp32; killed and resumed it is the uncut run."""
    config = half(quick, update, tmp_path / "uncut")
    assert "proof" in str(train(config))
    fine = replace(config, out=str(tmp_path / "fine"), compute=Compute("cpu"))
    train(replace(fine, steps=1))
    (first, *_), (other, *_) = metrics_of(tmp_path / "uncut"), metrics_of(tmp_path / "fine")
    assert first["policy/grad_norm"] == pytest.approx(other["policy/grad_norm"], rel=0.15)
    cut = replace(config, out=str(tmp_path / "cut"))
    with pytest.raises(Cut):
        train(cut, Dies(after=3))
    train(cut, resume=True)
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "uncut")


def test_an_overflow_is_tried_again_at_a_smaller_scale(quick: TrainConfig, tmp_path: Path) -> None:
    """From 2^40 it falls until the gradient is the one of 2^16, and no step is lost."""
    made = session.prepare(half(quick, "last(1)", tmp_path))
    found = []
    groups = step.sample_groups(made, 0)
    for start in (2.0**16, 2.0**40):
        made.optimization.masters.scale.value = start
        rewards_PG = torch.arange(float(len(groups) * len(groups[0].completions)))
        rewards_PG = rewards_PG.view(len(groups), -1) % 3
        batch = step.make_batch(made.objective, groups, rewards_PG)
        heard: list[Any] = []
        sums = step.backward(made, batch, {}, heard)
        assert sum(len(rows) for rows, *_ in heard) == len(batch.rows)
        found.append({n: g.clone() for n, g in made.optimization.gradients().items()})
        assert math.isfinite(sums["loss"]) and made.counters.skipped == 0
        made.optimization.clear()
    assert 1.0 < made.optimization.masters.scale.value < 2.0**30
    small, large = found
    for name, gradient in small.items():
        torch.testing.assert_close(large[name], gradient, rtol=0.02, atol=1e-5)


def test_weights_that_are_not_finite_still_stop_the_run(quick: TrainConfig, tmp_path: Path) -> None:
    """The scale does not hide them: the loss itself is no number."""
    made = session.prepare(half(quick, "last(1)", tmp_path))
    name, master = next(iter(made.optimization.masters.held.items()))
    for _ in range(2):
        master.tensor.grad = torch.full_like(master.tensor, math.inf)
        assert not made.optimization.overflowed(math.nan)
        made.optimization.step(math.nan, 1e-3)
    master.tensor.grad = torch.full_like(master.tensor, math.inf)
    with pytest.raises(RunStopped, match="not finite for 3 steps"):
        made.optimization.step(math.nan, 1e-3)
    assert made.optimization.masters.scale.value == 2.0**16, name


def test_a_checkpoint_holds_the_scale(quick: TrainConfig, tmp_path: Path) -> None:
    train(half(quick, "last(1)", tmp_path))
    *_, last = sorted((tmp_path / "checkpoints").iterdir())
    state = json.loads((last / "state.json").read_text())
    assert state["scale"] == [2.0**16, state["optimizer_steps"]] != [2.0**16, 0]


def test_a_critic_in_fp16(quick: TrainConfig, tmp_path: Path) -> None:
    """Its own model has a scale of its own."""
    for critic in ("head", "lora(rank=2)"):
        config = half(quick, "last(1)", tmp_path / critic[:4])
        train(replace(config, objective=f"ppo(critic={critic!r})"))
        assert all(math.isfinite(line["critic/loss"]) for line in metrics_of(tmp_path / critic[:4]))
