"""A real model on real problems: SmolLM2-135M-Instruct on GSM8K (slow).

The model comes from `scripts/fetch_smollm2.py`; MODICUM_SMOLLM2 names a folder that has it
already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import metrics_of
from modicum.config import Held, Records, Sampling, Steps, TrainConfig
from modicum.train import train

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parent / "data" / "gsm8k"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    known = os.environ.get("MODICUM_SMOLLM2")
    if known:
        return Path(known)
    out = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    script = ROOT / "scripts" / "fetch_smollm2.py"
    done = subprocess.run([sys.executable, str(script), "--out", str(out)], check=False)
    assert done.returncode == 0
    return out


class Stop(Exception):
    """A crash."""


@pytest.mark.parametrize("update", ["last(2)", "lora(rank=4)"])
def test_train_resume_export_reload(smollm2: Path, tmp_path: Path, update: str) -> None:
    from transformers import AutoModelForCausalLM

    from modicum import cli
    from modicum.session import reload
    from modicum.train import Observer

    class StopAfterOne(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            if metrics["step"] == 1:
                raise Stop

    config = replace(
        TrainConfig(),
        model=str(smollm2),
        task=f"gsm8k(path={str(DATA)!r})",
        # Any digit earns a little, so that groups of this small model have a signal.
        reward="accuracy(lenient=True) + 0.1*format",
        update=update,
        steps=2,
        out=str(tmp_path / "run"),
        sampling=Sampling(max_tokens=96),
        batch=Steps(prompts_per_step=3, group_size=4, micro_batch=4),
        evaluation=Held(eval_problems=2, eval_samples=1),
        records=Records(checkpoint_every=1, samples_every=1),
    )
    whole = train(replace(config, out=str(tmp_path / "whole")))
    with pytest.raises(Stop):
        train(config, StopAfterOne())
    result = train(config, resume=True)
    assert result["trained"] == whole["trained"]
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert any(line["groups/no_signal"] < 1 for line in metrics_of(tmp_path / "run"))

    assert cli.run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    session = reload(tmp_path / "run")
    ids = torch.tensor([session.loaded.tokenizer("What is 2+3?")["input_ids"]])
    with torch.no_grad():
        difference = again(input_ids=ids).logits - session.prepared.model(input_ids=ids).logits
    assert float(difference.abs().max()) < 1e-3
