"""The command line: one line for whatever the user got wrong, exit code 2, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import ENDED, QUICK, Fails, make_run
from modicum import cli
from modicum.types import UserError

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'", "evaluate"]),
        (["--steps", "3"], ["unknown command '--steps'"]),
        (["train", "--stesp", "1"], ["unknown option '--stesp'", "did you mean --steps?"]),
        (["train", "last(1)"], ["unknown option 'last(1)'"]),
        (["train", "--learning_rate=1"], ["did you mean --learning-rate?"]),
        (["train", "--num-generations", "8"], ["did you mean --group-size?"]),
        (["train", "--beta", "0.1"], ["did you mean --objective 'grpo(kl=0.04)'?"]),
        (["train", "--batch-size=8"], ["--prompts-per-step? (group_size completions of each)"]),
        (["train", "--dataset", "x"], ["""did you mean --task "file('problems.jsonl')"?"""]),
        (["train", "--use_vllm"], ["'--use_vllm'", "did you mean --sampler 'vllm'?"]),
        (["train", "--lora-r", "8"], ["did you mean --update 'lora(rank=8)'?"]),
        (["evaluate", "--max-new-tokens", "8"], ["did you mean --max-tokens?"]),
        (["evaluate", "--output-dir", "x"], ["did you mean --out?"]),
        (["train", "--steps"], ["--steps: expected one argument"]),
        (["train", "--steps", "abc"], ["steps must be a whole number, not 'abc'"]),
        (["train", "--steps", "-1"], ["steps must be at least 0, not -1"]),
        (["train", "--group-size", "1"], ["group_size must be at least 2"]),
        (["train", "--temperature", "0"], ["temperature 0"]),
        (["export", "--out", "/proc/none/x"], ["/proc/none/x cannot be made"]),
        (["evaluate", "--samples", "0"], ["samples must be at least 1"]),
        (["evaluate", "--problems", "0"], ["problems must be at least 1"]),
        (["tasks", "arithmetic", "--count", "0"], ["count must be at least 1"]),
        (["demo", "--updates", ";"], ["at least one update"]),
        (["demo", "--updates", "full; bogus(1)"], ["unknown update 'bogus'", "known are adalora"]),
        (["train", "--dtype", "fp8"], ["dtype", "bf16, fp16, fp32"]),
        (["train", "--resume", "--overwrite"], ["--overwrite: not allowed with argument --resume"]),
        (["train", "--config", "none.toml"], ["no config file none.toml"]),
        (["train", "--update", "lats(1)"], ["unknown update 'lats'", "did you mean 'last'"]),
        (["train", "--update", "last(n=1)"], ["no argument 'n'", "it takes k"]),
        (["train", "--update", "last(0)"], ["at least 1"]),
        (["train", "--task", "arithmetik"], ["unknown task", "did you mean 'arithmetic'"]),
        (["train", "--task", "3"], ["task '3' is a number"]),
        (["plan", "--curriculum", "unform"], ["unknown curriculum", "did you mean 'uniform'"]),
        (
            ["plan", "--sampler", "sglang"],
            ["unknown sampler 'sglang'; known are local, server, vllm"],
        ),
        (["train", "--objective", "gpro"], ["unknown objective", "did you mean 'grpo'"]),
        (["train", "--curriculum", "unifrom"], ["unknown curriculum", "'uniform'"]),
        (["train", "--model", "./no/such"], ["no model folder ./no/such"]),
        (["train", "--device", "nope"], ["'nope' is not a device"]),
        (["train", "--device", "cuda:99"], ["'cuda:99'"]),
        (["train", "--device", "meta"], ["'meta' cannot be used"]),
        (["train", "--device", "mps"], ["'mps' cannot be used here: this torch has no mps"]),
        (["updates", "lats(1)"], ["did you mean 'last'"]),
        (["updates", "full", "--model", "nowhere"], ["no model folder nowhere"]),
        (["tasks", "arithmetik"], ["did you mean 'arithmetic'"]),
        (["tasks", "--split", "tset"], ["split", "did you mean 'test'"]),
        (["tasks", "addition", "--model", "nowhere"], ["no model folder nowhere"]),
        (["tasks", "addition(below=5)", "--model", "tiny", "--examples", "99"], ["examples = 99"]),
        (["evaluate", "--template-args", "enable_thinking=no"], ["reads nothing but the chat"]),
        (["evaluate", "--template-args", "a=1", "--template-args", "b"], ["'a=1, b'"]),
        (["evaluate", "nowhere"], ["nowhere is not a run folder"]),
        (["evaluate", "--problems", "x"], ["problems must be a whole number"]),
        (["export", "nowhere", "--out", "x"], ["nowhere is not a run folder"]),
        (["export"], ["required: --out"]),
        (["export", "--out", "x", "--format", "adapter"], ["needs a RUN"]),
        (["export", "--out", "x", "--format", "gguf"], ["format", "adapter, merged"]),
        (["report"], ["needs at least one run folder"]),
        (["report", "nowhere"], ["nowhere is not a run folder"]),
        (["report", "."], [". is not a run folder (it has no config.toml)"]),
        (["compare", "nowhere"], ["there is no folder nowhere"]),
        (["demo", "--updates", "full; lats(1)"], ["did you mean 'last'"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and value[0].isascii() else "",
)
def test_a_wrong_command_line_is_one_line(
    args: list[str],
    parts: list[str],
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    message = fails(*args)
    for part in parts:
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", b"{garbage", "JSON"),
        ("config.json", b"[]", "broken"),
        ("config.json", b"{}", "model_type"),
        ("config.json", lambda b: b.replace(b'"qwen2"', b'"nope"'), "nope"),
        ("config.json", lambda b: b.replace(b'"hidden_size": 32', b'"hidden_size": "x"'), "size"),
        ("config.json", lambda b: b.replace(b'"hidden_size": 32', b'"hidden_size": 64'), "broken"),
        ("config.json", lambda b: b.replace(b"ForCausalLM", b"ForMaskedLM"), "not a causal"),
        ("model.safetensors", None, "model.safetensors"),
        ("model.safetensors", lambda b: b[: len(b) // 2], "header"),
        ("model.safetensors", lambda b: b[:5], "header"),
        ("model.safetensors", b"", "header"),
        ("model.safetensors", lambda b: b.replace(b"layers.1.mlp.up", b"layers.1.mlp.pu"), "mlp"),
        ("tokenizer.json", None, "tokenizer"),
        ("tokenizer.json", b"{garbage", "broken"),
        ("tokenizer.json", b"{}", "broken"),
        ("tokenizer_config.json", b"{garbage", "broken"),
    ],
)
def test_a_broken_model_folder_is_one_line(
    name: str, content: Any, reason: str, broken: Callable[..., Path], fails: Fails, tmp_path: Path
) -> None:
    folder = broken(name, content)
    message = fails("train", *QUICK, "--model", folder, "--out", tmp_path / "run")
    assert str(folder) in message
    assert reason in message
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_causal_is_one_line(fails: Fails, tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(hidden_size=8, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    assert "BertForMaskedLM" in fails("train", "--model", tmp_path)
    assert "BertForMaskedLM" in fails("updates", "full", "--model", tmp_path)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("stesp = 3", ["unknown key 'stesp'", "did you mean 'steps'"]),
        ("[batch]\nmicro_batch = -1", ["batch: micro_batch must be at least 0"]),
    ],
)
def test_a_wrong_config_file_is_one_line(
    text: str, parts: list[str], fails: Fails, tmp_path: Path
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    message = fails("train", "--config", path, "--out", tmp_path / "run")
    assert all(part in message for part in [str(path), *parts])


def test_a_prompt_that_is_too_long_is_named(
    fails: Fails, folders: dict[str, Path], tmp_path: Path
) -> None:
    options = [*QUICK, "--model", folders["qwen2"], "--out", tmp_path / "run"]
    message = fails("train", *options, "--max-prompt-tokens", 3, late=True)
    assert "max_prompt_tokens = 3" in message


# Run folders -----------------------------------------------------------------------------


def test_a_run_folder_is_not_overwritten_unasked(
    dense: Path, unfinished: Path, folders: dict[str, Path], fails: Fails
) -> None:
    options = [*QUICK, "--model", folders["qwen2"], "--out"]
    assert "holds a finished run" in fails("train", *options, dense)
    assert "--resume goes on" in fails("train", *options, unfinished)
    assert "no run folder" in fails("train", *options, folders["llama"], "--overwrite")


def test_a_runs_own_config_repeats_it_in_place(
    folders: dict[str, Path], fails: Fails, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path / "run", folders["qwen2"], "--update", "last(1)", "--seed", "3")
    config = out / "config.toml"
    before = config.read_text()
    assert "holds a finished run" in fails("train", "--config", config)
    assert cli.run(["train", "--config", str(config), "--out", str(out), "--overwrite"]) in ENDED
    assert config.read_text() == before
    assert json.loads((out / "result.json").read_text())["update"] == "last(1)"


def test_a_resume_that_cannot_be_is_one_line(dense: Path, unfinished: Path, fails: Fails) -> None:
    assert "finished run" in fails("train", "--resume", "--out", dense)
    assert "other settings (seed = 0)" in fails(
        "train", "--resume", "--out", unfinished, "--seed", 5
    )
    assert "not a run folder" in fails("train", *QUICK, "--resume", "--out", unfinished / "none")


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(
    name: str, unfinished: Path, fails: Fails, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    path = unfinished / "checkpoints" / "step-000001" / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-9])
        for args in (["train", "--resume", "--out"], ["evaluate"], ["export", "--out", out]):
            message = fails(*args, unfinished)
            assert str(path.parent) in message
            assert "damaged" in message
        assert not out.exists()
    finally:
        path.write_bytes(whole)


def test_a_state_without_a_counter_is_named(unfinished: Path, fails: Fails) -> None:
    path = unfinished / "checkpoints" / "step-000001" / "state.json"
    whole = path.read_text()
    try:
        path.write_text(whole.replace('"skipped"', '"jumped"'))
        assert "state.json has no 'skipped'" in fails("evaluate", unfinished)
    finally:
        path.write_text(whole)


def test_a_run_goes_on_under_another_name_of_its_folder(unfinished: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(unfinished, tmp_path / "moved")
    assert cli.run(["train", "--resume", "--json", "--out", f"{moved}/"]) in ENDED
    assert (moved / "result.json").exists()


def test_an_export_that_cannot_be_is_one_line(dense: Path, fails: Fails, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no adapter" in fails("export", dense, "--out", out, "--format", "adapter")
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    assert "is not empty" in fails("export", dense, "--out", out)
    assert "holds no model" in fails("export", dense, "--out", out, "--overwrite")
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_a_failure_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("modicum.commands.tasks.run", crash)
    with pytest.raises(ZeroDivisionError):
        cli.run(["tasks"])
    with pytest.raises(UserError):
        cli.run(["nope"])
