"""What is loaded, and what is refused before it is: text parts, encoders, layers that differ."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from conftest import random_model
from helpers import ENDED, metrics_of, tensors_of
from modicum import cli, runs
from modicum.config import Sampling, TrainConfig
from modicum.engine.library import LibraryEngine
from modicum.engine.logprobs import backward
from modicum.export import export_base
from modicum.models.configs import attention_sizes, numbers
from modicum.models.linear import is_matrix
from modicum.models.load import TINY, load, read_config
from modicum.plan.shapes import cache_numbers, generous_bound
from modicum.tasks.prompts import encode
from modicum.types import Problem, UserError

TEXT = {
    "vocab_size": 282, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 0,
    "pad_token_id": 1, "max_position_embeddings": 256,
}  # fmt: skip
LINEAR = {
    **TEXT, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
HYBRID = {**LINEAR, "layer_types": ["linear_attention", "full_attention"]}
QWEN_VISION = {
    "depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": 32,
    "num_position_embeddings": 16,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
WHOLE = {
    "Qwen3_5ForConditionalGeneration": ("Qwen3_5Config", HYBRID, QWEN_VISION, "Qwen3_5ForCausalLM"),
    "Gemma3ForConditionalGeneration": ("Gemma3Config", TEXT, SIGLIP, "Gemma3ForCausalLM"),
    "Mistral3ForConditionalGeneration": (
        "Mistral3Config",
        {**TEXT, "model_type": "mistral"},
        {**SIGLIP, "model_type": "pixtral", "head_dim": 8},
        "MistralForCausalLM",
    ),
}


def whole_model(name: str, folder: Path) -> Any:
    """A small model of text and images beside the tokenizer of the tiny base."""
    config, text, vision, _ = WHOLE[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, config)(text_config=text, vision_config=vision)
        model = getattr(transformers, name)(made).eval()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", WHOLE)
def test_of_a_model_with_more_parts_the_text_is_loaded_and_exported(
    name: str, tmp_path: Path
) -> None:
    whole = whole_model(name, tmp_path / "whole")
    loaded = load(str(tmp_path / "whole"), "cpu")
    assert type(loaded.model).__name__ == WHOLE[name][3]
    assert not any("vis" in tensor for tensor, _ in loaded.model.named_parameters())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted, found = whole(input_ids=ids).logits, loaded.model(input_ids=ids).logits
    assert torch.allclose(wanted, found, atol=1e-5)
    assert loaded.notes == (
        f"{tmp_path}/whole has more parts than text: {WHOLE[name][3]} is loaded, trained and"
        " exported, and not its vision",
    )
    assert export_base(str(tmp_path / "whole"), tmp_path / "out", overwrite=False) == 0.0
    again = load(str(tmp_path / "out"), "cpu")
    assert again.identity.hashes["base_hash"] == loaded.identity.hashes["base_hash"]
    assert again.notes == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "bert", "is_decoder": False, "architectures": ["BertLMHeadModel"]},
            "is not a causal language model: its config says that it is an encoder",
        ),
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"]},
            r"is not a causal language model \(Qwen2ForSequenceClassification\)",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            r"is not a causal language model \(T5ForConditionalGeneration\)",
        ),
        (
            {"model_type": "blt", "architectures": ["BltForCausalLM"]},
            "'blt' cannot be run: its config has no number of layers",
        ),
        (
            {"model_type": "musicgen", "architectures": ["MusicgenForConditionalGeneration"]},
            "'musicgen' cannot be run: its tokens are sounds, not text",
        ),
        (
            {"model_type": "xlnet", "architectures": ["XLNetLMHeadModel"]},
            "'xlnet' cannot be run: what follows a token changes what is predicted before it",
        ),
        (
            {
                "model_type": "gemma4_assistant",
                "text_config": {
                    "num_hidden_layers": 2,
                    "num_kv_shared_layers": 2,
                    "hidden_size_per_layer_input": 0,
                    "vocab_size_per_layer_input": 0,
                },
            },
            "'gemma4_assistant' cannot be run: it drafts for another model",
        ),
    ],
    ids=[
        "encoder",
        "classifier",
        "encoder-decoder",
        "no layers",
        "sound",
        "looks ahead",
        "drafter",
    ],
)
def test_what_is_no_language_model_is_refused_by_its_config(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        read_config(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_text_that_the_library_does_not_map_is_known_by_its_class(tmp_path: Path) -> None:
    """Of Mllama only the whole is mapped; what is exported is its text."""
    config = transformers.models.mllama.configuration_mllama.MllamaTextConfig(
        **{**TEXT, "head_dim": None}, cross_attention_layers=[]
    )
    transformers.MllamaForCausalLM(config).save_pretrained(tmp_path / "text")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "text")
    assert type(load(str(tmp_path / "text"), "cpu").model).__name__ == "MllamaForCausalLM"
    assert export_base(str(tmp_path / "text"), tmp_path / "out", overwrite=False) == 0.0


def test_layers_may_differ_in_shape() -> None:
    sizes = {**TEXT, "global_head_dim": 16, "hidden_size_per_layer_input": 8}
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Gemma4TextConfig(**sizes, layer_types=kinds)
    assert numbers(config, "head_dim") == [8, 16]
    assert attention_sizes(config) == [(4, 2, 8), (4, 2, 16)]
    assert cache_numbers(config) == 96  # 2 x 2 heads x (8 + 16)
    bound = generous_bound(TrainConfig(), config, 64)
    assert bound is not None and bound > 0
    assert attention_sizes(transformers.MambaConfig(num_hidden_layers=2)) == [(0, 0, 768)] * 2
    # A list in the config, a number for each layer.
    lists = SimpleNamespace(num_hidden_layers=2, intermediate_size=[8, 24])
    lists.get_text_config, lists.per_layer_config = lambda: lists, [lists, lists]
    assert numbers(lists, "intermediate_size") == [8, 24]
    assert numbers(lists, "hidden_size") == []


def test_a_token_without_an_embedding_is_named() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    tokenizer.embedding_rows = 282
    tokenizer.add_tokens(["<odd>"])
    text = "prompt of problem p/1 has the token '<odd>' \\(number 282\\): the tokenizer has 283"
    with pytest.raises(UserError, match=text + " tokens, the model embeddings for 282"):
        encode(Problem("p/1", "what is <odd>?", "1"), tokenizer, Sampling())
    assert encode(Problem("p/2", "what is 1+1?", "2"), tokenizer, Sampling())


def test_loading_says_how_many_embeddings_there_are() -> None:
    assert load("tiny", "cpu").tokenizer.embedding_rows == 282


def test_what_takes_no_part_cannot_train() -> None:
    engine = LibraryEngine(random_model("llama"), torch.device("cpu"))
    engine.model.requires_grad_(False)
    with pytest.raises(UserError, match="nothing of what trains takes part"):
        backward(engine, torch.zeros(1, 32), torch.tensor([5]), Sampling(), lambda p, _: p.sum())


def test_a_scale_is_part_of_the_head_in_low_precision() -> None:
    """A scale of 0.9 moves log-probs by less than rounding may."""
    model = random_model("granite", layers=2, logits_scaling=1 / 0.9).to(torch.bfloat16)
    engine = LibraryEngine(model, torch.device("cpu"))
    pack = torch.tensor([[5, 6, 7, 8]]), torch.arange(4)
    with torch.no_grad():
        found = engine.logits(engine.hidden(pack, None))
        wanted = model(input_ids=pack[0]).logits[0]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "got_ocr2"])
def test_the_head_of_a_text_model_within_another_is_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their models take what the decoder gives apart, by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    model = importlib.import_module("small_models").model_of(name).eval()
    engine, ids = LibraryEngine(model, torch.device("cpu")), torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        found = engine.logits(engine.hidden((ids, torch.arange(4)), None))
        assert torch.equal(found, model(input_ids=ids).logits[0])


def test_weights_of_rwkv_stay_as_they_are_in_evaluation(tmp_path: Path) -> None:
    """The library would halve those of every sixth layer in place, once it is not training."""
    config = {"model_type": "rwkv", "rescale_every": 6, "architectures": ["RwkvForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(str(tmp_path)).rescale_every == 0


def test_a_router_is_no_matrix_to_adapt() -> None:
    """It gives a choice of experts; Falcon's linear layers give what others do."""
    llama4, falcon = transformers.models.llama4, transformers.models.falcon
    config = transformers.Llama4TextConfig(**TEXT, num_local_experts=2)
    assert not is_matrix(llama4.modeling_llama4.Llama4Router(config))
    assert is_matrix(falcon.modeling_falcon.FalconLinear(8, 8))


@pytest.mark.slow
def test_a_hybrid_run_that_is_killed_and_resumed_equals_the_uncut_one(tmp_path: Path) -> None:
    """Three layers, two with linear attention; 20 steps of the main job's settings."""
    kinds = ["linear_attention", "linear_attention", "full_attention"]
    sizes = {**LINEAR, "num_hidden_layers": 3, "layer_types": kinds}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**sizes))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--steps", "20", "--prompts-per-step", "4"]
    options += ["--group-size", "4", "--max-tokens", "12", "--eval-problems", "0"]
    options += ["--task", "arithmetic(terms=2,digits=1)", "--checkpoint-every", "2"]
    options += ["--reward", "random", "--no-anatomy", "--agreement-every", "1", "--device", "cpu"]
    options += ["--engine", "split"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.run(["train", *options, "--out", str(whole)]) in ENDED
    process = subprocess.Popen(
        [sys.executable, "-m", "modicum", "train", *options, "--out", str(cut)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while len(runs.checkpoints(cut)) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "result.json").exists(), "the run ended before it could be killed"
    assert cli.run(["train", *options, "--out", str(cut), "--resume"]) in ENDED
    assert len(metrics_of(whole)) == 20
    proof = json.loads((whole / "result.json").read_text())["agreement_proof"]
    assert proof.startswith("in fp32 sampler, trainer and library differ by at most")
    assert metrics_of(whole) == metrics_of(cut)
    assert tensors_of(whole) == tensors_of(cut)


@pytest.mark.slow
def test_every_architecture_trains_or_is_refused_in_one_line(tmp_path: Path) -> None:
    """The sweep over all that `AutoModelForCausalLM` maps; it takes most of an hour."""
    script = Path(__file__).parent.parent / "scripts" / "sweep_models.py"
    out = tmp_path / "models.json"
    subprocess.run([sys.executable, str(script), "--out", str(out)], check=True)
    found = json.loads(out.read_text())
    assert len(found) > 190
    assert not {n: o for n, o in found.items() if any(v.startswith("fault") for v in o.values())}
    assert sum(outcome.get("full") == "ok" for outcome in found.values()) > 150
