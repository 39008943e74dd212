"""Loading by path: every family, GGUF files, code and pickles only when asked."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from conftest import random_model
from helpers import Fails, metrics_of
from modicum import cli, hub
from modicum.config import Trust
from modicum.models import configs, identity
from modicum.models.decoder import FAMILIES
from modicum.models.identity import weights_hash
from modicum.models.load import TINY, load, locate
from modicum.training.loop import train
from modicum.types import UserError

SMALL = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
HYBRID = {
    **SMALL,
    "linear_value_head_dim": 8,
    "layer_types": ["full_attention", "linear_attention"],
}
# What a family's config needs beside the sizes of `random_model`.
EXTRAS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 8},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 4.0},
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), HYBRID),
}
OFTEN = ("llama", "qwen2", "gemma2", "gemma3_text", "granite", "qwen3_5_text")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in OFTEN else [pytest.mark.slow])
        for family in sorted(FAMILIES)
    ],
)
def test_every_family_trains_when_it_is_loaded_by_path(
    family: str, quick: Any, tmp_path: Path
) -> None:
    """A checkpoint on disk, one step with the agreement proof, on the engine of our own."""
    folder = tmp_path / family
    random_model(family, layers=2, **EXTRAS.get(family, {})).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    # The library's engine is refused, so that a silent fall back would be seen.
    config = replace(
        quick,
        model=str(folder),
        update="last(1)",
        reward="random",
        steps=1,
        compute=replace(quick.compute, engine="split", agreement_every=1),
        evaluation=replace(quick.evaluation, eval_problems=0),
    )
    result = train(config)
    assert result["agreement_max"] < 1e-3
    (line,) = metrics_of(tmp_path / "run")
    assert line["policy/grad_norm"] > 0


def write_gguf(path: Path, model: Any, pre: str) -> None:
    """A random Qwen2 as a GGUF file, with a tokenizer of bytes and one merge."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    config = model.config
    writer = GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    tokens = ["<|end|>", *sorted(ByteLevel.alphabet()), "11"]
    tokens += [f"<{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(["1 1"])
    writer.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd",
        "lm_head": "output", "norm": "output_norm",
    }  # fmt: skip
    for name, tensor in model.named_parameters():
        rest = name.removeprefix("model.")
        layer = rest.split(".")[1] if rest.startswith("layers.") else None
        rest = rest.removeprefix(f"layers.{layer}.")
        stem, _, kind = rest.rpartition(".")
        block = f"blk.{layer}." if layer is not None else ""
        writer.add_tensor(f"{block}{names[stem]}.{kind}", tensor.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("pre", ["qwen2", "smollm"])
def test_a_gguf_file_is_an_ordinary_model(pre: str, tmp_path: Path) -> None:
    model = random_model("qwen2", layers=2, tie_word_embeddings=False)
    path = tmp_path / "model.gguf"
    write_gguf(path, model, pre)
    loaded = load(str(path), device="cpu")
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits)
    # It says no more that it is quantised, and can be saved and loaded again.
    loaded.model.save_pretrained(tmp_path / "out")  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(tmp_path / "out")
    again = load(str(tmp_path / "out"), device="cpu")
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)
    # For SmolLM digits stand alone before anything else is cut.
    cuts = str(loaded.tokenizer.backend_tokenizer.pre_tokenizer)
    assert ("Digits(individual_digits=True)" in cuts) == (pre == "smollm")


def test_gguf_faults_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no GGUF file"):
        load(str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(UserError, match=r"cannot load the model in .*bad\.gguf") as caught:
        load(str(tmp_path / "bad.gguf"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"has no config\.json; name the file .*bad\.gguf"):
        load(str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"modicum\[gguf\]"):
        configs.files(str(tmp_path / "bad.gguf"))


def test_pickled_weights_are_read_only_when_asked(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(folders["qwen2"], folder)
    model = load(str(folder), device="cpu").model
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="--pickled-weights"):
        load(str(folder), device="cpu")
    again = load(str(folder), device="cpu", trust=Trust(pickled_weights=True)).model
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


CODE = """
from pathlib import Path

from transformers import PretrainedConfig, Qwen2ForCausalLM
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config

Path({marker!r}).write_text("ran")


class OwnConfig(Qwen2Config):
    model_type = "own"


class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


def test_a_models_own_code_is_run_only_when_asked(
    folders: dict[str, Path], tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    folder, marker = tmp_path / "own", tmp_path / "marker"
    shutil.copytree(folders["qwen2"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    sizes = ("--problems", "1", "--samples", "1", "--max-tokens", "2")
    message = fails("evaluate", "--model", folder, *sizes)
    assert "--trust-remote-code" in message
    assert not marker.exists()
    command = ["evaluate", "--model", str(folder), *sizes, "--trust-remote-code", "--json"]
    assert cli.run(command) == 0
    assert marker.read_text() == "ran"


def test_a_hub_id_says_what_was_looked_for_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="HF_HUB_OFFLINE") as caught:
        load("nobody/nothing")
    message = str(caught.value)
    assert "\n" not in message
    assert "local cache" in message and "the hub http" not in message
    assert "path of a folder" in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("models/SmolLM2-135M-Instruct", "python scripts/fetch_smollm2.py makes models/SmolLM2"),
        ("./SmolLM2-135M-Instruct/", "; python scripts/fetch_smollm2.py makes models/SmolLM2"),
        ("models/my-tiny", "there is no model folder models/my-tiny"),
        ("runs/last1", "there is no model folder runs/last1"),
        ("./mine", "there is no model folder ./mine"),
        ("/nobody/mine", "there is no model folder /nobody/mine"),
        ("a/b/c", "there is no model folder a/b/c"),
        ("owner/my model", "there is no model folder owner/my model"),
        ("gpt2", "no model folder gpt2; a model on the hub is named OWNER/NAME"),
    ],
)
def test_what_cannot_be_a_hub_id_is_a_folder_that_is_not_there(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "silence", lambda: pytest.fail("the hub was asked"))
    with pytest.raises(UserError) as error:
        locate(name)
    assert says in str(error.value)


def test_a_silent_hub_is_asked_once_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def silence() -> str:
        asked.append(1)
        return "https://huggingface.co does not answer (no such name)"

    monkeypatch.setattr(hub, "silence", silence)
    assert locate("Qwen/Qwen2.5-0.5B").local is False
    assert asked == [], "not before a file is wanted"
    assert locate("Qwen/Qwen2.5-0.5B").arguments["local_files_only"] is True
    with pytest.raises(UserError) as error:
        load("HuggingFaceTB/SmolLM2-135M-Instruct")
    message = str(error.value)
    assert "the local cache" in message and "https://huggingface.co does not answer" in message
    assert "python scripts/fetch_smollm2.py makes models/SmolLM2-135M-Instruct" in message
    monkeypatch.setattr(hub, "silence", lambda: "")
    assert locate("Qwen/Qwen2.5-0.5B").arguments["local_files_only"] is False


class Answers(BaseHTTPRequestHandler):
    """A hub that refuses whatever it is asked."""

    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None: ...


def test_any_answer_of_the_hub_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    assert hub.silence.__wrapped__() == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        place = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", place)
        Thread(target=server.handle_request).start()
        assert hub.silence.__wrapped__() == ""
    assert hub.silence.__wrapped__() == f"{place} does not answer ([Errno 111] Connection refused)"


# Which base it is ------------------------------------------------------------------------------


WEIGHTS = "385fcdf2f808bf816f3247e37f0cb762d371383ede9d0c81e746d9d8c1230f86"


class Small(torch.nn.Module):
    """Two parameters that are one, a buffer that is kept and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.head = self.embed
        self.register_buffer("kept", torch.tensor([1, 2], dtype=torch.int16))
        self.register_buffer("dropped", torch.zeros(2), persistent=False)


def test_the_hash_of_weights_is_of_names_shapes_dtypes_and_bytes() -> None:
    """The literal is from hashlib alone, over the bytes written out by struct."""
    model = Small()
    assert weights_hash(model) == WEIGHTS
    model.dropped[0] = 5.0
    assert weights_hash(model) == WEIGHTS
    for change in (
        lambda m: m.kept.fill_(7),
        lambda m: m.embed.data[1, 2].copy_(torch.nextafter(m.embed.data[1, 2], torch.tensor(9.0))),
        lambda m: m.register_parameter("embed", torch.nn.Parameter(m.embed.data.T.contiguous())),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.register_buffer("more", torch.zeros(1)),
    ):
        other = Small()
        change(other)
        assert weights_hash(other) != WEIGHTS


def test_large_tensors_are_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(1000.0)
    whole = identity.fingerprint(tensor)
    monkeypatch.setattr(identity, "CHUNK", 7)
    assert identity.fingerprint(tensor) == whole


def test_the_identity_of_a_base_is_of_what_was_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Wherever it lies; in another dtype it is another base."""
    copy = shutil.copytree(folders["qwen2"], tmp_path / "copy")

    def hashes(**how: Any) -> list[str]:
        return list(load(str(copy), **how).identity.hashes.values())

    def change(name: str, **values: Any) -> None:
        path = copy / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    assert load(str(copy)).identity == load(str(folders["qwen2"])).identity
    assert load(str(copy)).identity.seconds > 0
    weights, texts, config = hashes()
    assert weights == weights_hash(random_model("qwen2"))
    half = hashes(dtype="bf16")
    assert half[0] != weights
    assert half[1:] == [texts, config]
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    other = hashes()[1]
    assert hashes() == [weights, other, config] != [weights, texts, config]
    change("generation_config.json", eos_token_id=[0, 5])  # texts end elsewhere
    last = hashes()[1]
    assert hashes() == [weights, last, config] != [weights, other, config]
    change("config.json", transformers_version="4.0.0", architectures=["Qwen2ForCausalLM", "X"])
    assert hashes() == [weights, last, config]
    change("config.json", rms_norm_eps=1e-3)
    assert hashes()[:2] == [weights, last]
    assert hashes()[2] != config


@pytest.mark.parametrize("command", [["train"], ["evaluate"], ["export", "--out", "none"]])
def test_what_is_no_whole_model_says_what_to_do(
    command: list[str], dense: Path, tmp_path: Path, fails: Fails
) -> None:
    line = fails(*command, "--model", dense)
    assert f"{dense} is a run folder, not a model folder: modicum evaluate {dense}" in line
    assert f"modicum export {dense} --out FOLDER --format merged makes it a model" in line
    for name in ("adapter_config.json", "config.json"):
        (tmp_path / name).write_text("{}")
        line = fails(*command, "--model", tmp_path)
        assert f"{tmp_path} is an adapter and does not name its base; --base MODEL does" in line
