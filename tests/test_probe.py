"""Architectures that the engine does not know: tried out, then run right or refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from conftest import random_model
from modicum import cli
from modicum.config import Compute, Sampling
from modicum.engine.base import Asked
from modicum.engine.library import Abilities, LibraryEngine
from modicum.engine.logprobs import logprobs
from modicum.engine.policy import make
from modicum.engine.samplers import LocalSampler
from modicum.models.load import TINY
from modicum.types import Row, UserError

CPU = torch.device("cpu")
PROMPTS = [(5, 6, 7, 8, 9), (11, 12), (20, 21, 22, 23)]
COMMON = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 0, "vocab_size": 282}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LINEAR = {
    "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "intermediate_size": 48, "hidden_size": 32, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
MADE: dict[str, dict[str, Any]] = {
    "codegen": {**OLD, "rotary_dim": 4},
    "openai-gpt": OLD,
    "qwen3_5_text": LINEAR,
    "minimax": {
        "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
        "block_size": 8, "layer_types": ["full_attention", "linear_attention"],
    },
    "llama4_text": {
        "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2,
        "intermediate_size_mlp": 48, "layer_types": ["chunked_attention", "full_attention"],
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "modernbert-decoder": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48,
    },
    "bert": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "is_decoder": True,
    },
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}  # fmt: skip


def model_of(name: str, **changes: Any) -> Any:
    """A small random model; with the tiny base's vocabulary."""
    if name not in MADE:
        return random_model(name, layers=2, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **COMMON, **{**MADE[name], **changes})
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.2)
    return model


@pytest.mark.parametrize(
    ("name", "changes", "can"),
    [
        ("llama", {}, Abilities()),
        ("gpt2", {}, Abilities()),
        ("codegen", {}, Abilities()),
        ("openai-gpt", {}, Abilities(cache="none")),
        ("qwen3_5_text", {}, Abilities()),
        ("minimax", {}, Abilities()),
        ("llama4_text", {}, Abilities()),
        ("mamba", {}, Abilities(cache="equal")),
        ("rwkv", {}, Abilities(cache="none")),
        ("granite", {"logits_scaling": 8.0}, Abilities()),
        ("cohere", {"logit_scale": 0.25}, Abilities()),
        ("bert", {}, Abilities()),
        ("modernbert-decoder", {}, Abilities()),
    ],
)
def test_log_probs_are_those_of_the_plain_forward(
    name: str, changes: dict[str, Any], can: Abilities
) -> None:
    model = model_of(name, **changes)
    engine = make(model, CPU, compute=Compute(engine="library"))
    assert isinstance(engine, LibraryEngine) and engine.can == can
    assert LibraryEngine(model, CPU).can == can, "the agreement proof makes its own"
    assert bool(engine.notes) is (can.cache != "padded")
    tokenizer = type("Texts", (), {"batch_decode": lambda self, rows, **_: [""] * len(rows)})()
    sampling = Sampling(max_tokens=6)
    keys = [("key", number) for number in range(3)]
    asked = Asked(PROMPTS, keys, 4, sampling)
    # Rows end at different lengths: every second token is an end.
    groups = LocalSampler(engine, tokenizer, range(0, 282, 4)).sample(asked)
    assert len({len(c.tokens) for group in groups for c in group}) > 1
    rows = [
        Row(p, c.tokens, c.logprobs, 0.0)
        for p, group in zip(PROMPTS, groups, strict=True)
        for c in group
    ]
    wanted = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.prompt + row.tokens])).logits[0]
        logprobs_TV = logits[len(row.prompt) - 1 : -1].log_softmax(-1)
        wanted += logprobs_TV.gather(-1, torch.tensor(row.tokens)[:, None])[:, 0].tolist()
    assert [p for row in rows for p in row.logprobs] == pytest.approx(wanted, abs=1e-4)
    found, _ = logprobs(engine, rows, sampling)
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    found.sum().backward()
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0


def test_what_looks_ahead_or_raises_is_one_line() -> None:
    with pytest.raises(UserError, match="architecture 'xlnet' cannot be run: what follows"):
        make(model_of("xlnet"), CPU)
    # Rotations of 64 numbers in heads of 8.
    with pytest.raises(
        UserError, match=r"^the architecture 'codegen' cannot be run: The size of .+$"
    ):
        make(model_of("codegen", rotary_dim=64), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_5_text", "mamba", "xlnet"])
def test_such_a_model_trains_or_is_refused(name: str, tmp_path: Path, capsys: Any) -> None:
    model_of(name).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "model")
    given = ["--model", str(tmp_path / "model"), "--max-tokens", "8", "--device", "cpu"]
    short = ["--prompts-per-step", "2", "--group-size", "4", "--steps", "1", "--eval-problems", "0"]
    kind = ["--reward", "random", "--agreement-every", "1", "--no-anatomy"]
    train = ["train", *given, *short, *kind, "--out", str(tmp_path / "run")]
    evaluate = ["evaluate", *given, "--problems", "3", "--samples", "2"]
    for command in (train, evaluate, ["plan", *given]):
        if name == "xlnet":
            with pytest.raises(UserError, match="architecture 'xlnet' cannot be run"):
                cli.run(command)
        else:
            assert cli.run(command) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert ("prompts of one length are sampled together" in said) is (name == "mamba")
