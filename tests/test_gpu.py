"""What needs a CUDA device: the engine's equalities there, and a short run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import random_model
from helpers import metrics_of
from modicum import updates
from modicum.config import Compute, Sampling
from modicum.engine import logprobs, make
from modicum.engine.samplers import draw
from modicum.engine.split import FIXED, GROWING, REPLAYED
from modicum.engine.text import Texts
from modicum.models import cache
from modicum.models.rounding import rounded
from modicum.naming import run_folder
from modicum.training.loop import train
from modicum.types import Row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS = [Row((40, 41, 42), (50, 60 + i, 70, 80), (0.0,) * 4, 1.0) for i in range(6)]


@pytest.mark.parametrize("update", ["full", "last(1)", "lora(rank=2)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_split_engine_is_the_librarys(dtype: torch.dtype, update: str) -> None:
    device = torch.device("cuda")
    prepared = updates.parse(update).apply(random_model("qwen2").to(device, dtype), 0)
    found = [
        logprobs.logprobs(make(prepared.model, device, lowest, compute), ROWS, Sampling())[0]
        for compute, lowest in (
            (Compute(engine="split"), prepared.lowest_layer),
            (Compute(engine="library"), -1),
        )
    ]
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.2, "rtol": 0.05}
    torch.testing.assert_close(*found, **close)


@pytest.mark.parametrize("update", ["full", "lora(rank=2)"])
def test_a_replayed_graph_gives_what_steps_do(update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several rooms, with rows that end."""
    monkeypatch.setattr(cache, "LEAST", 8)
    device, found = torch.device("cuda"), []
    prepared = updates.parse(update).apply(random_model("qwen2").to(device), 0)
    prompts = [(40, 41, 42), (50, 51)]
    uniforms_RT = torch.rand(8, 40, generator=torch.Generator().manual_seed(0)).to(device)
    for way in (GROWING, FIXED, REPLAYED):
        engine: Any = make(prepared.model, device, prepared.lowest_layer)
        engine.way = way
        with torch.inference_mode():
            decoding = engine.decode(prompts, 4, 40, False)
            found.append(draw(decoding, uniforms_RT, Sampling(), Texts(None, range(0, 282, 20))))
    for drawn in found[1:]:
        for (tokens, values), (others, wanted) in zip(drawn, found[0], strict=True):
            assert tokens == others
            assert values == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("update", ["full", "last(1)", "lora(rank=2)"])
def test_a_run_ends_with_its_proofs(quick: Any, update: str, dtype: Any) -> None:
    config = replace(quick, update=update, compute=Compute(device="cuda", dtype=dtype))
    result = train(config)
    assert "frozen ones are bit-identical" in result["change_proof"]
    assert len(metrics_of(run_folder(config))) == config.steps
    assert result["peak_memory_bytes"] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_draws_what_a_cpu_draws(dtype: torch.dtype) -> None:
    """Over several pieces on both, and by index."""
    values = torch.randn(2**22 + 2**16 + 3, generator=torch.Generator().manual_seed(0))
    values[:4] = torch.tensor([0.0, 1e-40, float("inf"), 3.4e38])
    whole = rounded(values, dtype, (1, -2))
    assert torch.equal(rounded(values.cuda(), dtype, (1, -2)).cpu(), whole)
    index = torch.arange(5, len(values), 7)
    found = rounded(values[index].cuda(), dtype, (1, -2), index.cuda())
    assert torch.equal(found.cpu(), whole[index])
