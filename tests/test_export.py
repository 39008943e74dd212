"""Exports: plain transformers and peft load them and give the policy's own logits."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from conftest import random_model
from helpers import Fails, make_run, replace_base
from modicum import cli, runs
from modicum.answers import STYLES
from modicum.config import Optimizer, Sampling, TrainConfig
from modicum.export import export_run, export_whole, writing
from modicum.models.load import TINY, load
from modicum.parts import past_config
from modicum.tasks.handed import own
from modicum.training.checkpoint import reload
from modicum.training.loop import train
from modicum.types import RunStopped, UserError

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
CASES = [(f, u) for f in ("qwen2", "llama") for u in ("last(1)", "lora(rank=2)")]
IDS = torch.arange(2, 42).reshape(2, 20)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def run_of(quick: TrainConfig, folders: dict[str, Path], family: str, update: str) -> TrainConfig:
    """A finished run whose policy is well away from its base."""
    config = replace(
        quick,
        model=str(folders[family]),
        update=update,
        optimizer=Optimizer(learning_rate=1e-2),
        evaluation=replace(quick.evaluation, eval_problems=0),
        records=replace(quick.records, anatomy=False),
    )
    train(config)
    return config


def export(*args: object) -> None:
    assert cli.run(["export", *map(str, args)]) == 0


@pytest.mark.parametrize(("family", "update"), CASES)
def test_a_run_is_exported_as_an_ordinary_model(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path, family: str, update: str
) -> None:
    config = run_of(quick, folders, family, update)
    export(config.out, "--out", tmp_path / "out")
    found = plain(tmp_path / "out")
    policy = logits(reload(Path(config.out)).prepared.model)
    assert close(logits(found), policy)
    assert not close(logits(found), logits(plain(folders[family])))
    tied = found.get_output_embeddings().weight is found.get_input_embeddings().weight
    assert tied is (family == "qwen2")
    assert found.config.tie_word_embeddings is tied
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert set(saved) == set(load_file(folders[family] / "model.safetensors"))


# PEFT asks transformers for a name that is to go.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_an_adapter_is_exported_without_a_network(
    quick: TrainConfig,
    folders: dict[str, Path],
    tmp_path: Path,
    family: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peft import PeftModel

    config = run_of(quick, folders, family, "lora(rank=2)")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    out = tmp_path / "out"
    export(config.out, "--out", out, "--format", "adapter")
    assert (out / "adapter_config.json").exists()
    assert not (out / "model.safetensors").exists()
    assert all(".lora_" in name for name in load_file(out / "adapter_model.safetensors"))
    base = plain(folders[family])
    before = logits(base)
    found = logits(PeftModel.from_pretrained(base, str(out)))
    assert close(found, logits(reload(Path(config.out)).prepared.model))
    assert not close(found, before)


@pytest.mark.parametrize(("update", "form"), [("last(1)", "merged"), ("lora(rank=2)", "adapter")])
def test_lora_14_a_second_export_gives_the_newer_weights(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path, update: str, form: str
) -> None:
    config, out = run_of(quick, folders, "llama", update), tmp_path / "out"
    name = "model.safetensors" if form == "merged" else "adapter_model.safetensors"
    arguments = (config.out, "--out", out, "--format", form)
    export(*arguments)
    first = load_file(out / name)
    train(replace(config, steps=6), overwrite=True)
    with pytest.raises(UserError, match="is not empty; --overwrite replaces it"):
        export(*arguments)
    assert all(torch.equal(first[n], t) for n, t in load_file(out / name).items())
    (out / "stale.safetensors").write_bytes(b"")
    export(*arguments, "--overwrite")
    second = load_file(out / name)
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[n], second[n]) for n in first)
    assert not (out / "stale.safetensors").exists()
    if form == "merged":
        assert close(logits(plain(out)), logits(reload(Path(config.out)).prepared.model))


@pytest.mark.parametrize("update", ["last(1)", "lora(rank=2)"])
def test_tok_05_the_tokenizer_comes_back_the_same(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path, update: str
) -> None:
    from transformers import AutoTokenizer

    base = shutil.copytree(folders["llama"], tmp_path / "base")
    before = AutoTokenizer.from_pretrained(base)
    before.chat_template = CHAT
    before.save_pretrained(base)
    config = run_of(quick, {"llama": base}, "llama", update)
    form = "adapter" if update.startswith("lora") else "merged"
    export(config.out, "--out", tmp_path / "out", "--format", form)
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("What is 12+3-4?\n<think>", " two  spaces\tand ü 😀 \x00", "</answer>", ""):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    chat = [{"role": "user", "content": "1+1?"}]
    shown = after.apply_chat_template(chat, tokenize=False)
    assert shown == f"<user>1+1?\n\n{STYLES['tags'].instruction}"
    assert own(after.chat_template) == CHAT
    assert (
        load(
            str(tmp_path / "out"), base=str(base) if "lora" in update else ""
        ).tokenizer.chat_template
        == CHAT
    )
    assert after.get_vocab() == before.get_vocab()
    special = [(t.bos_token_id, t.eos_token_id, t.pad_token_id) for t in (before, after)]
    assert special[0] == special[1]


def test_the_shipped_base_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export("--model", "tiny", "--out", out, "--json")
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["out"] == str(out)
    assert result["files"] == sorted(p.name for p in out.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(result["files"])
    assert result["largest_logit_difference"] == 0
    assert torch.equal(logits(plain(out)), logits(plain(TINY)))
    assert load(str(out)).end_tokens == load("tiny").end_tokens


def test_an_export_of_a_bf16_base_stays_bf16(folders: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(str(folders["qwen2"]), dtype="bf16")
    assert export_whole(loaded.model, loaded, tmp_path) == 0
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_a_buffer_that_no_file_holds_is_as_a_reader_makes_it(tmp_path: Path) -> None:
    """Gemma's factor of embeddings, which a run in bf16 has rounded."""
    loaded = load("tiny", "cpu")
    model = random_model("gemma3_text", layers=1).to(torch.bfloat16).float()
    assert float(model.model.embed_tokens.embed_scale) == 5.65625
    assert export_whole(model, loaded, tmp_path) == 0
    assert float(model.model.embed_tokens.embed_scale) == pytest.approx(32**0.5)


def test_an_export_of_other_weights_stops(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(str(folders["qwen2"]))
    save = loaded.model.save_pretrained

    def save_others(out: Path) -> None:
        save(out)
        tensors = load_file(out / "model.safetensors")
        tensors["model.norm.weight"][0] += 0.5
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(loaded.model, "save_pretrained", save_others)
    with pytest.raises(RunStopped, match="gives other logits"):
        export_whole(loaded.model, loaded, tmp_path / "out")


def test_an_export_touches_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UserError), writing(tmp_path, overwrite, {}):
            pass
        with (
            pytest.raises(UserError, match="is a file"),
            writing(tmp_path / "thesis.txt", overwrite, {}),
        ):
            pass
    assert (tmp_path / "thesis.txt").read_text() == "x"


# What an export never replaces --------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def own_base(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["qwen2"], tmp_path / "models" / "base")


@pytest.fixture
def lora_run(own_base: Path, tmp_path: Path) -> Path:
    """A run on a base of its own, which tests may change."""
    options = ("--update", "lora(rank=2)", "--eval-problems", "0", "--no-anatomy")
    return make_run(tmp_path / "runs" / "lora", own_base, *options)


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_bases_and_runs_are_never_replaced(
    lora_run: Path,
    own_base: Path,
    tmp_path: Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    fails: Fails,
) -> None:
    """By whatever path, and also where a model lies beside them."""
    (tmp_path / "link").symlink_to(own_base)
    (tmp_path / "run-link").symlink_to(lora_run)
    for above in ("models", "runs"):
        (tmp_path / above / "config.json").write_text("{}")
    study = shutil.copytree(own_base, tmp_path / "study")
    (study / "study.toml").write_text("")
    store = tmp_path / "store"
    store.mkdir()
    shutil.move(own_base / "model.safetensors", store / "weights")
    (store / "config.json").write_text("{}")
    (own_base / "model.safetensors").symlink_to(store / "weights")
    monkeypatch.chdir(tmp_path / "runs")
    outs = {
        "is the base of the run": [
            own_base,
            "../models/base",
            tmp_path / "link",
            "../models",
            store,
        ],
        "is the run": [lora_run, "lora", tmp_path / "run-link", "."],
        "holds a run or a study": [study],
        "in modicum's own files": [TINY],
    }
    before = files_of(tmp_path)
    for words, places in outs.items():
        for out in places:
            line = fails("export", lora_run, "--format", form, "--overwrite", "--out", out)
            assert words in line, line
    assert files_of(tmp_path) == before


def test_another_run_and_the_hub_are_never_replaced(
    lora_run: Path, own_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    other = shutil.copytree(lora_run, tmp_path / "other")
    (other / "config.json").write_text("{}")
    cache = tmp_path / "hub"
    snapshot = shutil.copytree(own_base, cache / "models--a--b" / "snapshots" / "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    before = files_of(tmp_path)
    assert "is a run folder" in fails("export", lora_run, "--overwrite", "--out", other)
    for out in (snapshot, cache, cache / "new"):
        assert "hub's cache" in fails("export", lora_run, "--overwrite", "--out", out)
    message = fails("export", "--model", own_base, "--overwrite", "--out", own_base)
    assert "is the model itself" in message
    assert files_of(tmp_path) == before


def test_a_failed_export_leaves_what_was_there(
    lora_run: Path, own_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    out = tmp_path / "out"
    export(lora_run, "--out", out)
    before = files_of(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        line = fails("export", lora_run, "--overwrite", "--out", out)
        assert "was not written, what it held is there: I/O error: No space left" in line
        patch.setattr("transformers.PreTrainedModel.save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_run(lora_run, out, "merged", overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr("modicum.export.TOLERANCE", -1.0)
        with pytest.raises(RunStopped, match="gives other logits"):
            export_run(lora_run, out, "merged", overwrite=True)
    replace_base(own_base)
    changed = files_of(tmp_path)
    with pytest.raises(UserError, match="another base model: its hash differs"):
        export_run(lora_run, out, "merged", overwrite=True)
    assert files_of(tmp_path) == changed
    assert {n: b for n, b in changed.items() if "base" not in n} == {
        n: b for n, b in before.items() if "base" not in n
    }


def test_an_export_says_where_it_comes_from(lora_run: Path, own_base: Path, tmp_path: Path) -> None:
    known = load(str(own_base)).identity
    for form in ("merged", "adapter"):
        out = tmp_path / form
        export(lora_run, "--out", out, "--format", form)
        assert json.loads((out / "modicum.json").read_text()) == {
            "written_by": "modicum 0.1.0",
            "base": "base",
            "base_folder": "../models/base",
            **known.hashes,
            "run": "lora",
            "update": "lora(rank=2)",
            "format": form,
        }
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert logits(plain(tmp_path / "merged")).shape == (2, 20, 282)


def test_an_export_goes_through_a_link(lora_run: Path, tmp_path: Path) -> None:
    """A folder that is there stays the folder it is; one behind a link is made or replaced."""
    (tmp_path / "empty").mkdir()
    number = (tmp_path / "empty").stat().st_ino
    export(lora_run, "--out", tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_ino == number
    (tmp_path / "link").symlink_to(tmp_path / "behind")
    for _ in range(2):
        export(lora_run, "--out", tmp_path / "link", "--overwrite")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "behind" / "model.safetensors").is_file()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="loop cannot be made"):
        export_run(lora_run, tmp_path / "loop", "merged", overwrite=False)


# Another base, or the same in another place ---------------------------------------------------


@pytest.mark.parametrize("update", ["full", "sparse(keep=0.1)", "lora(rank=2)"])
def test_a_run_on_another_base_is_not_exported(
    own_base: Path, tmp_path: Path, update: str, fails: Fails
) -> None:
    options = ("--update", update, "--eval-problems", "0", "--no-anatomy")
    run = make_run(tmp_path / "run", own_base, *options)
    replace_base(own_base)
    for form in ("merged", "adapter") if "lora" in update else ("merged",):
        line = fails("export", run, "--out", tmp_path / "out", "--format", form)
        assert "was trained on another base model: its hash differs" in line
        assert str(own_base) in line
    assert not (tmp_path / "out").exists()


def test_a_base_that_changes_between_two_readings_is_found(
    lora_run: Path, own_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter is compared on a second copy of the base."""
    from modicum import export as module

    def late(*arguments: Any) -> Any:
        replace_base(own_base)
        return load(*arguments)

    monkeypatch.setattr(module, "load", late)
    with pytest.raises(UserError, match="another base model: its hash differs"):
        export_run(lora_run, tmp_path / "out", "adapter", overwrite=False)


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_run_is_exported_from_where_its_base_is_now(
    lora_run: Path, own_base: Path, tmp_path: Path, form: str, fails: Fails
) -> None:
    moved, out = own_base.rename(tmp_path / "moved"), tmp_path / "out"
    line = fails("export", lora_run, "--out", out, "--format", form)
    assert "there is no model folder" in line
    assert "--model NEW says where it is now" in line
    assert "another base model" in fails("export", lora_run, "--model", "tiny", "--out", out)
    line = fails("export", lora_run, "--model", "nonsense", "--out", out)
    assert "nonsense" in line
    export(lora_run, "--out", out, "--format", form, "--model", moved)
    told = json.loads((out / "modicum.json").read_text())
    assert (told["base"], told["base_folder"]) == ("moved", "../moved")
    line = fails("export", lora_run, "--model", moved, "--out", moved, "--overwrite")
    assert "is the base of the run" in line


def test_a_relative_base_is_found_from_another_folder(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders["qwen2"], tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    options = ("--update", "last(1)", "--eval-problems", "0", "--no-anatomy")
    run = make_run(Path("run"), Path("models/mine"), *options)  # as a hub id looks
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    export(tmp_path / run, "--out", "out")
    assert (tmp_path / "elsewhere" / "out" / "model.safetensors").is_file()
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(UserError, match="there is no model folder models/mine, the base of"):
        reload(tmp_path / run)


# Reloading a run -------------------------------------------------------------------------


def change_tensors(folder: Path, change: Any) -> None:
    """Rewrite a checkpoint's tensors with `change` applied, and its hash to fit."""
    tensors = load_file(folder / "tensors.safetensors")
    change(tensors)
    save_file(tensors, folder / "tensors.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["tensors_sha256"] = runs.file_hash(folder / "tensors.safetensors")
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("damage", ["renamed", "missing", "extra", "shape"])
def test_lora_08_a_checkpoint_with_other_tensors_is_refused(
    quick: TrainConfig, folders: dict[str, Path], damage: str
) -> None:
    config = run_of(quick, folders, "llama", "lora(rank=2)")
    checkpoint = runs.checkpoints(Path(config.out))[-1]
    named: list[str] = []

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = min(n for n in tensors if n.startswith("value/"))
        named.append(name.removeprefix("value/"))
        if damage == "renamed":
            tensors["value/a.renamed"] = tensors.pop(name)
            named.append("a.renamed")
        elif damage == "missing":
            tensors.pop(name)
        elif damage == "extra":
            tensors["value/a.extra"] = torch.zeros(1)
            named[:] = ["a.extra"]
        else:
            tensors[name] = tensors[name][:1].clone()

    change_tensors(checkpoint, change)
    with pytest.raises(UserError, match="is of another update or model") as caught:
        reload(Path(config.out))
    assert str(checkpoint) in str(caught.value)
    assert any(name in str(caught.value) for name in named)


def test_a_checkpoint_on_another_base_is_refused(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = shutil.copytree(folders["llama"], tmp_path / "base")
    config = run_of(quick, {"llama": base}, "llama", "last(1)")
    reload(Path(config.out))
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][3, 3] += 0.01
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="another base model"):
        reload(Path(config.out))


def test_a_run_without_a_checkpoint_cannot_be_exported(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = run_of(quick, folders, "llama", "last(1)")
    shutil.rmtree(Path(config.out) / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        export(config.out, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_is_exported_where_its_problems_are_no_more(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(60)))
    run = make_run(tmp_path / "run", folders["qwen2"], "--task", f"file({str(data)!r})")
    data.unlink()
    assert cli.run(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert reload(run).config.task == f"file({str(data)!r})"


def test_a_run_of_short_prompts_is_loaded_again(quick: TrainConfig) -> None:
    """No problem of another task is needed to have the policy, nor would its prompt fit."""
    short = Sampling(max_tokens=12, max_prompt_tokens=9, template="plain", style="none")
    config = replace(quick, task="addition(below=9)", sampling=short, steps=1)
    train(config)
    assert reload(Path(config.out)).config == past_config(Path(config.out))
