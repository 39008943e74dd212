"""Every adapter exported: plain PEFT loads it onto the plain base, and it is the policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum import cli
from modicum.config import Compute, Optimizer, TrainConfig
from modicum.export import adapter_of, export_adapter, export_whole
from modicum.models.load import load
from modicum.training import checkpoint, session
from modicum.training.loop import train
from modicum.types import UserError
from modicum.updates import UPDATES
from modicum.updates.adapter import Adapter

IDS = torch.tensor([[40, 41, 42, 43, 44, 45], [50, 51, 52, 53, 54, 55]])
ADAPTERS = [cls.examples[0] for cls in UPDATES.values() if issubclass(cls, Adapter)]


@torch.no_grad()
def stir(prepared: Any, noise: float) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in prepared.trainable.values():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits.float()


def session_of(text: str, folders: dict[str, Path], dtype: Any = "fp32") -> session.Session:
    """A session whose adapter does something."""
    config = replace(TrainConfig(), model=str(folders["qwen2"]), update=text)
    made = session.prepare(replace(config, compute=Compute("cpu", dtype)))
    stir(made.prepared, 0.05)
    return made


def base_of(folders: dict[str, Path], dtype: str = "fp32") -> Any:
    return load(str(folders["qwen2"]), "cpu", dtype).model


# Export ----------------------------------------------------------------------------------


# PEFT asks transformers for a name that is to go, and does not know the sizes of norms.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("text", ADAPTERS)
def test_every_adapter_is_exported(text: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Plain PEFT loads it onto the plain base, and the logits are the policy's."""
    from peft import PeftModel

    made = session_of(text, folders)
    policy = logits(made.prepared.model)
    adapter = adapter_of(made.prepared, tmp_path, text)
    export_adapter(adapter, made.policy, base_of(folders), tmp_path)
    base = base_of(folders)
    before = logits(base)
    found = logits(PeftModel.from_pretrained(base, str(tmp_path)))
    torch.testing.assert_close(found, policy, atol=1e-4, rtol=1e-4)
    assert float((policy - before).abs().max()) > 1e-3


@pytest.mark.parametrize("text", ["lora(rank=2)", "lntuning", "shira(rank=2)", "tinylora"])
def test_a_bf16_run_is_exported_both_ways(
    text: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The rounded base is that of the run; what is compared is computed in fp32."""
    made = session_of(text, folders, "bf16")
    moved = float((logits(made.prepared.model) - logits(base_of(folders, "bf16"))).abs().max())
    adapter = adapter_of(made.prepared, tmp_path, text)
    base = base_of(folders, "bf16")
    assert export_adapter(adapter, made.policy, base, tmp_path / "adapter") < 1e-2 * moved
    made = session_of(text, folders, "bf16")
    assert export_whole(made.prepared.model, made.policy, tmp_path / "merged") < 1e-2 * moved


def test_what_cannot_be_exported_as_an_adapter_says_so(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for text, dtype, words in [
        ("last(1)", "fp32", r"trained 'last\(1\)', which is no adapter"),
        ("pissa(rank=2)", "bf16", "rewritten base was rounded.*--format merged"),
    ]:
        made = session_of(text, folders, dtype)
        with pytest.raises(UserError, match=words):
            adapter_of(made.prepared, tmp_path, text)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_pissa_run_is_exported_for_the_base_as_it_is(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT alone would write an adapter for the rewritten base: rank 2 becomes 4."""
    from peft import PeftModel

    config = replace(
        quick,
        update="pissa(rank=2)",
        steps=2,
        optimizer=Optimizer(learning_rate=1e-2),
        evaluation=replace(quick.evaluation, eval_problems=0),
    )
    train(config)
    out = tmp_path / "out"
    assert cli.run(["export", config.out, "--out", str(out), "--format", "adapter"]) == 0
    saved = json.loads((out / "adapter_config.json").read_text())
    assert (saved["r"], saved["init_lora_weights"]) == (4, True)
    policy = logits(checkpoint.reload(Path(config.out)).prepared.model)
    base = base_of(folders)
    before = logits(base)
    found = logits(PeftModel.from_pretrained(base, str(out)))
    torch.testing.assert_close(found, policy, atol=1e-4, rtol=1e-4)
    assert float((policy - before).abs().max()) > 1e-2
