"""The model card of an export, the names in it, and the modes of its files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from helpers import make_run
from modicum import card, runs
from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.export import export_run
from modicum.models.load import TINY, Source, load, locate
from modicum.parts import past_config
from modicum.tasks.prompts import prompt_text

FORMS = ("merged", "adapter")
MORE = ("--style", "boxed", "--system", "Be brief.", "--template", "r1_zero", "--seed", "7")


@pytest.fixture(scope="module")
def run(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a base in a folder, whose prompt is not that of the base's tokenizer."""
    at = tmp_path_factory.mktemp("handed")
    base = shutil.copytree(folders["qwen2"], at / "models" / "my-base")
    (base / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# base\n")
    return make_run(at / "runs" / "mine", base, "--update", "lora(rank=2)", "--no-anatomy", *MORE)


@pytest.fixture(scope="module")
def exports(run: Path) -> dict[str, Path]:
    at = run.parent.parent / "out"
    for form in FORMS:
        export_run(run, at / form, form, overwrite=False)
    return {form: at / form for form in FORMS}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.mark.parametrize("form", FORMS)
def test_the_card_is_whole(run: Path, exports: dict[str, Path], form: str) -> None:
    text, result = (exports[form] / "README.md").read_text(), runs.read_object(run / "result.json")
    found = ModelCard(text).data.to_dict()
    assert found["license"] == "mit" and found["pipeline_tag"] == "text-generation"
    assert found["library_name"] == ("peft" if form == "adapter" else "transformers")
    assert "base_model" not in found  # the folder's name is nobody's id on the hub
    for said in (
        *("my-base", "`lora(rank=2)`", "`arithmetic`", "one seed (7)", "| before | after |"),
        *(result["change_proof"], result["agreement_proof"], "torch "),
        f"{result['trainable_parameters']:,} of ",
        *json.loads((run / "environment.json").read_text())["base"]["base_hash"].split(),
    ):
        assert said in text
    for key in ("accuracy", "lenient", "greedy"):
        assert f"{100 * result['trained'][key]:.1f}%" in text
    assert not re.search(r"\n\n\n|None|Undefined|More Information", text)
    (prompt,) = blocks(text, "text")
    assert prompt.startswith("Be brief. Please reason step by step") and "\nUser: What is" in prompt


@pytest.mark.parametrize("form", FORMS)
def test_the_config_of_the_card_repeats_the_run(
    run: Path, exports: dict[str, Path], form: str, tmp_path: Path
) -> None:
    (toml,) = blocks((exports[form] / "README.md").read_text(), "toml")
    (tmp_path / "run.toml").write_text(toml)
    again = from_mapping(TrainConfig, read_toml(tmp_path / "run.toml"), "run.toml")
    past = past_config(run)
    assert again == replace(past, model="my-base", out="")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_code_of_the_card_runs_as_pasted(
    run: Path, exports: dict[str, Path], form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (code,) = blocks((exports[form] / "README.md").read_text(), "python")
    at = shutil.copytree(exports[form], tmp_path / "here")
    (at / "my-base").symlink_to(run.parent.parent / "models" / "my-base")
    monkeypatch.chdir(at)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert "stop_strings=['\\nUser:']" in code and "temperature=1.0" in code
    assert out.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_the_template_asks_as_training_did(run: Path, exports: dict[str, Path], form: str) -> None:
    """The first prompt that the run has written down, token for token."""
    sample = runs.read_lines(run / "samples.jsonl")[0]
    config = past_config(run)
    tokenizer = AutoTokenizer.from_pretrained(exports[form])
    chat = [{"role": "user", "content": sample["question"]}]
    found = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    text = prompt_text(sample["question"], load(config.model).tokenizer, config.sampling)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(found["input_ids"]) == expected


@pytest.mark.parametrize("form", FORMS)
def test_no_path_of_this_machine_is_in_an_export(
    run: Path, exports: dict[str, Path], form: str
) -> None:
    for path in exports[form].rglob("*"):
        assert str(run.parent.parent).encode() not in path.read_bytes(), path.name
    told = runs.read_object(exports[form] / "modicum.json")
    assert (told["base"], told["run"]) == ("my-base", "mine")
    assert told["base_folder"] == "../../models/my-base"
    if form == "adapter":
        said = runs.read_object(exports[form] / "adapter_config.json")
        assert said["base_model_name_or_path"] == "my-base"
        source = locate(str(exports[form]))  # and modicum finds it by the relative way
        assert Path(source.place).samefile(run.parent.parent / "models" / "my-base")


def test_bases_are_called_by_name(tmp_path: Path) -> None:
    at = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / "abc123"
    at.mkdir(parents=True)
    assert Source(str(at), True, {}).known_as == "HuggingFaceTB/SmolLM2-135M"
    assert Source("Qwen/Qwen3-0.6B", False, {}).known_as == "Qwen/Qwen3-0.6B"
    assert Source(str(TINY), True, {}).known_as == "tiny"
    assert Source(str(tmp_path), True, {}, str(tmp_path / "a.gguf")).known_as == "a.gguf"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_modes_of_the_umask(run: Path, tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        export_run(run, tmp_path / "out", "merged", overwrite=False)
        assert os.umask(mask) == mask, "it is as it was"
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {mode}


def test_a_prompt_that_no_template_gives_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the code of the card has it as text. Its problems are no more, nor has the run ended."""
    monkeypatch.setattr(card, "handed", lambda *_: "")
    monkeypatch.setattr(card, "PROBES", ("What is 12 + 3?",))
    past = shutil.copytree(run, tmp_path / "run")
    (past / "result.json").unlink()
    text = (past / "config.toml").read_text()
    (past / "config.toml").write_text(
        re.sub("(?m)^task = .*$", "task = \"file('gone.jsonl')\"", text)
    )
    base = run.parent.parent / "models" / "my-base"
    config = replace(past_config(past), model=str(base))
    export_run(past, tmp_path / "out", "adapter", overwrite=False, config=config, repo="me/mine")
    found = (tmp_path / "out" / "README.md").read_text()
    for said in ("No chat template gives exactly this prompt", "the run had not ended"):
        assert said in found
    assert "It was not evaluated" in found and "User: What is 12 + 3?" in found
    (code,) = blocks(found, "python")
    assert "tokenizer(prompt, add_special_tokens=False" in code and "place = 'me/mine'" in code
    whole = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert whole == AutoTokenizer.from_pretrained(base).chat_template


def test_what_is_typed_names_a_base_with_a_space(run: Path, tmp_path: Path) -> None:
    told = card.hand(run, past_config(run), load(past_config(run).model).tokenizer)
    facts = {"steps": 1, "trainable": 1, "total": 2, "hashes": {}, "written_by": "modicum 1"}
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "use_dora": false, "r": 4}'
    )
    card.write(tmp_path, {**told, **facts, "base": "my base", "repo": ""})
    assert "`vllm serve 'my base' --enable-lora" in (tmp_path / "README.md").read_text()


def test_a_card_that_knows_the_base_on_the_hub(run: Path, tmp_path: Path) -> None:
    """Its id stands in the front matter."""
    told: dict[str, Any] = card.hand(run, past_config(run), load(past_config(run).model).tokenizer)
    facts = {"steps": 1, "trainable": 1, "total": 2, "hashes": {}, "written_by": "modicum 1"}
    card.write(tmp_path, {**told, **facts, "base": "Qwen/Qwen3-0.6B", "repo": "me/mine"})
    found = ModelCard.load(tmp_path / "README.md")
    assert found.data.base_model == "Qwen/Qwen3-0.6B" and found.data.license is None
    assert "look it up" in found.text and "vllm serve me/mine" in found.text
