"""A real model on real problems: SmolLM2-135M-Instruct on GSM8K (slow).

The model comes from `scripts/fetch_smollm2.py`; MODICUM_SMOLLM2 names a folder that has it
already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import metrics_of
from modicum.config import Held, Records, Sampling, Steps, TrainConfig
from modicum.training.loop import train

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
    from modicum.training.checkpoint import reload
    from modicum.training.loop import Observer

    class StopAfterOne(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            if metrics["step"] == 1:
                raise Stop

    config = replace(
        TrainConfig(),
        model=str(smollm2),
        task=f"gsm8k(path={str(DATA)!r})",
        # A coin earns a little, so that groups of this small model have a signal.
        reward="accuracy(lenient=True) + 0.1*format + 0.1*random",
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
    ids = torch.tensor([session.policy.tokenizer("What is 2+3?")["input_ids"]])
    with torch.no_grad():
        difference = again(input_ids=ids).logits - session.prepared.model(input_ids=ids).logits
    assert float(difference.abs().max()) < 1e-3


@pytest.mark.filterwarnings("default")  # of lm-eval and what it imports
def test_gsm8k_numbers_are_lm_evals(smollm2: Path, tmp_path: Path) -> None:
    """The same 50 problems, prompt and greedy decoding give the same texts and verdicts.

    MODICUM_GSM8K names a folder with the original files; `pip install 'modicum[lm-eval]'`.
    """
    harness = pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    from modicum import tasks
    from modicum.engine import policy_of
    from modicum.evaluate import evaluate, held_out
    from modicum.models.load import load
    from modicum.tasks.prompts import prompt_text

    count, limit = 50, 160
    loaded = load(str(smollm2), "cpu")
    task = tasks.parse(f"gsm8k(path={os.environ.get('MODICUM_GSM8K', str(DATA))!r})")
    sampling = Sampling(max_tokens=limit, temperature=0.0, style="hashes")
    problems = held_out(task, "test", count)
    rows = [
        {"text": prompt_text(p.question, loaded.tokenizer, sampling), "gold": p.answer}
        for p in problems
    ]
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    regex = {"strict-match": {"regex_pattern": r"#### (\-?[0-9\.\,]+)"}}  # lm-eval's gsm8k.yaml
    regex["flexible-extract"] = {"regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"}
    filters = [
        {
            "name": name,
            "filter": [
                {"function": "regex", "group_select": -1 if name[0] == "f" else 0, **arguments},
                {"function": "take_first"},
            ],
        }
        for name, arguments in regex.items()
    ]
    config = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "hf")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{gold}}",
        "generation_kwargs": {
            "until": [loaded.tokenizer.eos_token],
            "do_sample": False,
            "max_gen_toks": limit,
        },
        "filter_list": filters,
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
            }
        ],
    }
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=25)
    found = harness.simple_evaluate(
        model=model, tasks=[ConfigurableTask(config=config)], bootstrap_iters=0, log_samples=True
    )
    theirs = {
        name: {s["doc"]["text"]: s for s in found["samples"]["ours"] if s["filter"] == name}
        for name in regex
    }
    kept: list[dict[str, Any]] = []
    ours = evaluate(
        policy_of(loaded),
        task,
        sampling,
        num_problems=count,
        keep=kept.extend,
    )
    print({"modicum": (ours.accuracy, ours.lenient), "lm-eval": found["results"]["ours"]})
    greedy = [row for row in kept if row["sample"] == "greedy"]
    strict, loose = (theirs[name] for name in regex)
    # Padded batches round otherwise: a near tie of two tokens may go the other way.
    texts = [strict[row["text"]]["resps"][0][0].strip() for row in rows]
    same = [a == row["completion"].strip() for a, row in zip(texts, greedy, strict=True)]
    assert sum(same) >= 0.9 * len(rows)
    for row, mine, equal in zip(rows, greedy, same, strict=True):
        if equal:
            assert bool(strict[row["text"]]["exact_match"]) <= mine["strict"]
    assert abs(ours.accuracy - found["results"]["ours"]["exact_match,strict-match"]) <= 0.04
    assert abs(ours.lenient - found["results"]["ours"]["exact_match,flexible-extract"]) <= 0.06
    assert len(loose) == len(rows)
