"""What is done otherwise where there is a GPU, as far as a CPU can tell."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import random_model
from modicum.config import Sampling
from modicum.engine import logprobs, make
from modicum.models import device
from modicum.models.load import TINY, locate, placed
from modicum.objectives import parse as goal
from modicum.objectives.base import Counts
from modicum.types import Row
from modicum.updates import parse

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def widened(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """A stand-in for `torch.mm`, which CUDA alone has with `out_dtype`."""
    return a.to(out_dtype) @ b.to(out_dtype)


def test_logits_in_fp32_have_the_gradients_of_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    head = nn.Linear(16, 50, bias=False, dtype=torch.bfloat16)
    given = torch.randn(7, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    slope = torch.randn(7, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for wide in (False, True):
        monkeypatch.setattr(device, "widens", lambda *_, on=wide: on)
        monkeypatch.setattr(torch, "mm", widened)
        head.weight.grad = None
        leaf = given.clone().requires_grad_()
        out = device.logits(head, leaf)
        assert out.dtype == (torch.float32 if wide else torch.bfloat16)
        out.backward(slope.to(out.dtype))
        found.append((out.detach().float(), leaf.grad, head.weight.grad))
    (plain, *slopes), (fine, *slopes_too) = found
    assert 0 < (plain - fine).abs().max() < 2**-8 * fine.abs().max()
    for one, other in zip(slopes, slopes_too, strict=True):
        torch.testing.assert_close(one, other)


def test_only_a_plain_head_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bias, an adapter or a forward of another it is asked itself."""
    monkeypatch.setattr(device, "widens", lambda *_: True)
    given = torch.randn(3, 8)
    biased, other = nn.Linear(8, 5), nn.Linear(8, 5, bias=False)
    other.forward = lambda x: x.sum(-1, keepdim=True)  # type: ignore[method-assign]
    assert device.logits(biased, given).grad_fn.name() == "AddmmBackward0"  # type: ignore[union-attr]
    assert device.logits(other, given).shape == (3, 1)


def test_a_cpu_widens_nothing() -> None:
    assert not device.widens(CPU, torch.bfloat16)
    assert not device.widens(CUDA, torch.float32)


def test_the_same_again_is_asked_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    device.repeatable(True, CPU)
    assert not asked
    try:
        device.repeatable(True, CUDA)
        device.repeatable(False, CUDA)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
    assert asked == [True, False]


def test_weights_are_read_straight_onto_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what cuBLAS must know before its first product."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    source = locate(str(TINY))
    assert placed(CPU, source) == {} and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert placed(CUDA, source) == {"device_map": {"": CUDA}}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert placed(CUDA, replace(source, gguf="model.gguf")) == {}


def test_a_gpu_has_larger_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make(random_model("qwen2"), CPU)
    few = logprobs.chunk_size(scorer)
    scorer.on_cuda = True
    assert logprobs.chunk_size(scorer) == pytest.approx(8 * few, abs=8)


def test_sums_are_read_as_numbers() -> None:
    model = random_model("qwen2")
    rows = [Row((40, 41), (50, 60 + n), (-5.5, -5.5), (-1.0) ** n) for n in range(2)]
    prepared = parse("full").apply(model, 0)
    policy: Any = type("Policy", (), {"scorer": make(model, CPU)})
    sums = logprobs.Sums(loss=0.0)
    for row in rows:
        given = (policy, prepared, goal("grpo"), [row], Counts(2, 4, 2), Sampling(max_tokens=2))
        logprobs.forward_backward(*given, sums)
    told = logprobs.read(sums)
    assert told["tokens"] == 4 and all(isinstance(value, float | int) for value in told.values())
    assert told["loss"] == pytest.approx(float(sums["loss"]))


def test_what_an_optimizer_counts_stays_on_the_host() -> None:
    """Fused AdamW counts on the device, those of ours on the host."""
    assert parse("galore(rank=4)").apply(random_model("qwen2"), 0).rule.on_host == (
        "step",
        "basis_made",
    )
    assert parse("full").apply(random_model("qwen2"), 0).rule.on_host == ()
