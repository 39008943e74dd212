"""An adapter's folder as a model: on its base, wrong ones, and training it further."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import random_model
from helpers import Fails, engine_of, make_run, metrics_of, tensors_of
from modicum import export, updates
from modicum.config import Sampling, TrainConfig
from modicum.engine.logprobs import logprobs
from modicum.models.adapters import quiet
from modicum.models.load import load
from modicum.parts import base_of
from modicum.training.loop import train
from modicum.types import Row, UserError

IDS = torch.arange(2, 42).reshape(2, 20)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def adapter_at(
    folder: Path, base: Path, kind: str = "LoraConfig", family: str = "llama", **settings: Any
) -> Path:
    """An adapter as PEFT writes it, its numbers drawn, without a tokenizer."""
    import peft

    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(1)
        config = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
        made: Any = peft.get_peft_model(random_model(family), config)
        for parameter in made.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(folder, save_embedding_layers=False)
    return folder


def theirs(folder: Path, base: Path) -> Any:
    """What plain PEFT loads."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with quiet():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))


@pytest.mark.parametrize("end", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_end_of_a_tied_base_unties_it_when_merged(
    end: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    at = adapter_at(tmp_path / "ad", folders["qwen2"], family="qwen2", target_modules=[end])
    wanted = logits(theirs(at, folders["qwen2"]))
    export.export_base(str(at), tmp_path / "whole", False)
    assert not json.loads((tmp_path / "whole" / "config.json").read_text())["tie_word_embeddings"]
    assert (logits(load(str(tmp_path / "whole")).model) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LoraConfig", {"r": 3, "lora_alpha": 5, "target_modules": ".*[qv]_proj"}),
        ("LoraConfig", {"use_rslora": True, "target_modules": "all-linear", "lora_dropout": 0.1}),
        ("LoraConfig", {"use_dora": True, "target_modules": ["o_proj"]}),
        ("LoraConfig", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("LoraConfig", {"target_modules": ["q_proj"], "rank_pattern": {"layers.0.*": 3}}),
        ("VeraConfig", {"r": 4, "target_modules": ["up_proj"]}),
        ("IA3Config", {"target_modules": ["k_proj"], "feedforward_modules": []}),
    ],
)
def test_an_adapter_is_its_base_with_it_on_top(
    kind: str, settings: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    """As PEFT has it, in our engine, and merged."""
    base = folders["llama"]
    at = adapter_at(tmp_path / "ad", base, kind, **settings)
    wanted = logits(theirs(at, base))
    loaded = load(str(at))
    assert (wanted - logits(load(str(base)).model)).abs().max() > 1e-2
    torch.testing.assert_close(logits(loaded.model), wanted, atol=1e-5, rtol=1e-5)
    row = Row(group=0, prompt=(3, 4, 5), tokens=(6, 7, 8), logprobs=(0.0,) * 3, advantage=1.0)
    found = []
    for engine in ("split", "library"):
        with torch.no_grad():
            found.append(logprobs(engine_of(loaded.model, engine), [row], Sampling())[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    export.export_base(str(at), tmp_path / "whole", False)
    torch.testing.assert_close(
        logits(load(str(tmp_path / "whole")).model), wanted, atol=1e-5, rtol=1e-4
    )


@pytest.fixture
def ad(folders: dict[str, Path], tmp_path: Path) -> Path:
    where = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    return adapter_at(tmp_path / "ad", folders["llama"], **where)


def spoiled(**changes: Any) -> Callable[[Path], None]:
    """A change of the adapter's config."""

    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def file_of(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A change of the adapter's tensors."""

    def spoil(folder: Path) -> None:
        tensors = load_file(path := folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, path)

    return spoil


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no json": (lambda f: (f / "adapter_config.json").write_text("{"), "not JSON"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "an object is wanted"),
    "no kind": (spoiled(peft_type=None), "does not fit"),
    "odd kind": (spoiled(peft_type="LARO"), "does not fit"),
    "odd rank": (spoiled(r=-1), "does not fit"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model"),
    "half a file": (
        lambda f: (p := f / "adapter_model.safetensors").write_bytes(p.read_bytes()[:99]),
        "or is broken",
    ),
    "no base": (spoiled(base_model_name_or_path=None), "does not name its base; --base MODEL"),
    "base gone": (spoiled(base_model_name_or_path="/gone"), "no model folder /gone; --base MODEL"),
    "a task": (spoiled(task_type="SEQ_CLS"), "an adapter for the task SEQ_CLS"),
    "prompts": (spoiled(peft_type="PROMPT_TUNING"), "an adapter of the kind PROMPT_TUNING"),
    "after a token": (spoiled(alora_invocation_tokens=[5]), "cannot be evaluated or trained"),
    "rank": (spoiled(r=3), "size mismatch"),
    "places": (spoiled(target_modules=["c_attn"]), "does not fit"),
    "one gone": (file_of(lambda t: t.pop(Q0)), f"has no {Q0}"),
    "one more": (
        file_of(lambda t: t.update({Q0.replace("q_proj", "k_proj"): t[Q0].clone()})),
        "no place for its tensor",
    ),
    "NaN": (file_of(lambda t: t[Q0].fill_(float("nan"))), "not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_adapter_is_one_line(name: str, ad: Path) -> None:
    spoil, words = WRONG[name]
    spoil(ad)
    with pytest.raises(UserError) as error:
        load(str(ad))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(ad) in str(error.value)


def test_the_base_of_an_adapter_can_be_elsewhere(
    ad: Path, folders: dict[str, Path], tmp_path: Path, fails: Fails
) -> None:
    wanted = logits(load(str(ad)).model)
    spoiled(base_model_name_or_path="org/gone")(ad)
    assert torch.equal(logits(load(str(ad), base=str(folders["llama"])).model), wanted)
    line = fails("evaluate", "--model", ad, "--base", "tiny", "--problems", "1")
    assert "does not fit" in line and "size mismatch" in line
    line = fails("evaluate", "--model", folders["llama"], "--base", "tiny")
    assert f"base = 'tiny' is for an adapter, and {folders['llama']} is none" in line
    shutil.copytree(ad, tmp_path / "other")
    line = fails("updates", "full", "--model", ad, "--base", tmp_path / "other")
    assert "merge that one first" in line


RIGHT = (
    "is not the adapter of the model, which is lora(rank=2, alpha=4); the way round: modicum export"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("full", "a dense update would train below it"),
        ("last(1) + parts(norm)", "a dense update would train below it"),
        ("lisa(layers=1, every=2)", "a dense update would train below it"),
        ("sparse(keep=0.1)", "a dense update would train below it"),
        ("lora(rank=2)", RIGHT),
        ("lora(rank=4, alpha=4)", RIGHT),
        ("lora(rank=2, alpha=4, experts=True)", RIGHT),
        ("rslora(rank=2, alpha=4)", RIGHT),
        ("dora(rank=2, alpha=4)", RIGHT),
        ("pissa(rank=2, alpha=4)", RIGHT),
        ("vera", RIGHT),
        ("lora(rank=2, alpha=4) @ last(1)", "lies elsewhere (first difference: model.layers.0."),
        ("lora(rank=2, alpha=4) @ parts(attention)", "leave @ out, it stays where it is"),
    ],
)
def test_another_update_on_an_adapter_is_refused(text: str, words: str, ad: Path) -> None:
    with pytest.raises(UserError) as error:
        updates.parse(text).apply(load(str(ad)).model)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}, {"rank_pattern": {"q_proj": 1}}],
)
def test_an_adapter_with_more_than_a_and_b_does_not_go_on(
    settings: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    where = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **settings}
    at = adapter_at(tmp_path / "ad", folders["llama"], **where)
    with pytest.raises(UserError, match=f"the adapter has {next(iter(settings))}"):
        updates.parse("lora(rank=2, alpha=4)").apply(load(str(at)).model)


@pytest.mark.parametrize(
    "text",
    ["lora(rank=2, alpha=4)", "loraplus(rank=2, alpha=4)", "lorafa(rank=2, alpha=4)"],
)
def test_an_adapter_goes_on_from_what_it_was(text: str, ad: Path) -> None:
    """Its own numbers train, and the reference is what it was, not the base."""
    model = load(str(ad)).model
    before = logits(model)
    prepared = updates.parse(text).apply(model)
    assert len(prepared.trainable) == (6 if "fa" in text else 12)
    assert torch.equal(logits(prepared.model), before)
    assert not prepared.reference_known and prepared.reference_bytes(kl=False) == 0
    prepared.keep_reference()
    assert prepared.reference_known and prepared.reference_bytes(kl=True) > 0
    with torch.no_grad():
        for parameter in prepared.trainable.values():
            parameter.add_(0.1)
    after = logits(prepared.model)
    with prepared.reference():
        assert torch.equal(logits(prepared.model), before)
    assert torch.equal(logits(prepared.model), after) and not torch.equal(after, before)


@pytest.mark.slow
def test_a_run_goes_on_from_an_adapter(ad: Path, bare: TrainConfig, tmp_path: Path) -> None:
    """Resumed it is the uncut run; exported it is one adapter on the same base."""
    config = replace(
        bare,
        model=str(ad),
        update="lora(rank=2, alpha=4)",
        objective="grpo(kl=0.5)",
        steps=3,
        compute=replace(bare.compute, engine="split", agreement_every=1),
        records=replace(bare.records, checkpoint_every=1),
    )
    train(replace(config, out=str(tmp_path / "uncut")))
    cut = replace(config, out=str(tmp_path / "cut"))
    train(replace(cut, steps=1))
    train(cut, resume=True)
    lines = metrics_of(tmp_path / "cut")
    assert lines == metrics_of(tmp_path / "uncut")
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "uncut")
    assert lines[0]["policy/kl"] == 0 and lines[1]["policy/kl"] > 0
    known = base_of(tmp_path / "cut")
    assert len(known["adapter_hash"]) == 64
    assert known["base_hash"] == load(known["under"]).identity.hashes["base_hash"]

    out = tmp_path / "out"
    assert export.export_run(tmp_path / "cut", out, "adapter", False) < 1e-5
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    merged = tmp_path / "merged"
    export.export_run(tmp_path / "cut", merged, "merged", False)
    again = load(str(out))
    torch.testing.assert_close(
        logits(again.model), logits(load(str(merged)).model), atol=1e-5, rtol=1e-5
    )
    assert again.model.peft_config["default"].base_model_name_or_path == known["under"]

    file_of(lambda tensors: tensors[Q0].add_(1e-3))(ad)
    with pytest.raises(UserError, match="trained on another adapter on its base: its hash differs"):
        train(replace(cut, steps=4), resume=True)


def test_an_export_never_replaces_an_adapter_or_its_base(
    ad: Path, folders: dict[str, Path], fails: Fails
) -> None:
    held = sorted(p.name for p in ad.iterdir())
    assert "never" in fails("export", "--model", ad, "--out", ad, "--overwrite")
    assert "never" in fails("export", "--model", ad, "--out", folders["llama"], "--overwrite")
    assert sorted(p.name for p in ad.iterdir()) == held


def test_the_preview_of_an_adapter_needs_no_weights(ad: Path, tmp_path: Path) -> None:
    from modicum.updates.preview import preview

    (ad / "adapter_model.safetensors").unlink()
    found = preview(updates.parse("lora(rank=2, alpha=4)"), str(ad))
    # A: 2 x 32 twice; B: 32 x 2 and, with half the heads, 16 x 2; three layers.
    assert found.parameters == 3 * (64 + 64 + 64 + 32) and found.tensors == 12
    assert found.notes == ["the adapter goes on as it is; the reference is the adapter as it was"]


@pytest.mark.slow
def test_the_command_line_goes_from_adapter_to_adapter(
    folders: dict[str, Path], tmp_path: Path, fails: Fails
) -> None:
    from modicum import cli

    first = make_run(tmp_path / "1", folders["qwen2"], "--update", "lora(rank=2)")
    cli.run(["export", str(first), "--out", str(tmp_path / "ad"), "--format", "adapter"])
    second = make_run(tmp_path / "2", tmp_path / "ad", "--update", "lora(rank=2)")
    cli.run(["export", str(second), "--out", str(tmp_path / "ad2"), "--format", "adapter"])
    cli.run(["evaluate", "--model", str(tmp_path / "ad2"), "--problems", "1"])
    cli.run(["plan", "--model", str(tmp_path / "ad2"), "--update", "lora(rank=2)"])
    assert "dense" in fails("train", "--model", tmp_path / "ad2", "--out", tmp_path / "3")
