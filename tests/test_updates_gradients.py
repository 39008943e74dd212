"""RGN and SNR against hand values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modicum.training import step
from modicum.updates.weighing import FLOOR, Rgn, RgnSchedule, Snr, SnrSchedule
from schedules import BATCH, session_of, walk

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
    schedule = RgnSchedule(Rgn(every=4, window=2, reset=True), nn.Module(), THREE, 0)
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
    schedule = SnrSchedule(
        Snr(every=3, window=1, reset=False, threshold=0.5), nn.Module(), THREE, 0
    )
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
    assert (
        SnrSchedule(Snr(3, 1, True, 0.39), nn.Module(), THREE, 0).weigh(
            {"a": 1.25, "b": 0.5, "c": 0.0}
        )["b"]
        == 1
    )
    assert SnrSchedule(Snr(3, 1, True, 0.5), nn.Module(), THREE, 0).weigh({"a": 2.0, "b": 2.0}) == {
        "a": 1,
        "b": 1,
    }
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
    schedule = SnrSchedule(Snr(every=9, window=4, reset=True, threshold=0.5), nn.Module(), THREE, 0)
    random = torch.Generator().manual_seed(0)
    shown = [torch.randn(2, generator=random) + 1 for _ in range(12)]
    for gradient in shown:
        schedule.group_gradients({"a": gradient})
    stacked = torch.stack(shown).double()
    wanted = (stacked.mean(0) ** 2 / stacked.var(0)).mean()
    assert schedule.measure() == pytest.approx({"a": float(wanted)}, rel=1e-5)


SPOILT = ["nan in the first group", "nan in the last group", "loss"]


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize(
    "update",
    [
        "sparse(keep=0.05, by='fisher', warmup=9)",
        "sparse(keep=0.05, by='taylor', warmup=9)",
        "snr(every=9, window=9)",
        "rgn(every=9, window=9)",
        "autofreeze(intervals=1)",
        "slimfit(rate=0.5)",
    ],
)
def test_a_skipped_step_leaves_nothing_behind(
    update: str, spoilt: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of it was not finite, and after steps that were; the next one counts again."""
    made = session_of(folders["llama"], update)
    schedule: Any = made.prepared.schedule
    walk(made, 1)
    collect, parts = made.optimization.masters.collect, []

    def spoil() -> None:
        collect()
        parts.append(1)
        if "nan" in spoilt and (len(parts) == 1 or "last" in spoilt):
            gradients = made.optimization.gradients()
            gradients[min(gradients)].view(-1)[3] = float("nan")

    state = schedule.state()
    tensors = {name: tensor.clone() for name, tensor in schedule.tensors().items()}
    seen = made.counters.signal_steps
    monkeypatch.setattr(made.optimization.masters, "collect", spoil)
    for _ in range(2):  # two updates of one rollout
        parts.clear()
        step.backward(made, BATCH, {})
        step.optimizer_step(made, float("inf") if spoilt == "loss" else 0.0)
    assert made.counters.skipped == 2 and made.counters.signal_steps == seen
    assert schedule.state() == state
    found = schedule.tensors()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    monkeypatch.setattr(made.optimization.masters, "collect", collect)
    groups = getattr(schedule, "groups", 0)
    walk(made, 1)
    assert made.counters.signal_steps == seen + 1
    assert getattr(schedule, "groups", 0) == groups + 2 * schedule.ever_by_group


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
