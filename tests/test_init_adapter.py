"""`--init-adapter`: the adapter of an update begins with the values of one that is there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import modicum
from helpers import Fails, metrics_of, tensors_of
from modicum import runs
from modicum.config import Compute, TrainConfig
from modicum.export import adapter_of, export_adapter, export_run
from modicum.naming import name_of
from modicum.parts import began
from modicum.training import checkpoint, session
from modicum.training.loop import Observer, train
from modicum.types import UserError
from test_adapter_export import ADAPTERS, base_of, logits, session_of

# Their starts are the base's, a rank that falls, and factors of the base with a core between them.
WITHOUT = {"pissa", "olora", "adalora", "loraxs"}


class Notes(Observer):
    """Collects what is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def adapter(folders: dict[str, Path], tmp_path: Path) -> Path:
    """One that is well away from its base, as an export writes it."""
    made, out = session_of("lora(rank=2)", folders), tmp_path / "adapter"
    export_adapter(adapter_of(made.prepared, out, "lora"), made.policy, base_of(folders), out)
    runs.Run(out).write("modicum.json", made.identity.hashes)
    return out


def config_of(quick: TrainConfig, folders: dict[str, Path], adapter: Path) -> TrainConfig:
    return replace(
        quick, model=str(folders["qwen2"]), update="lora(rank=2)", init_adapter=str(adapter)
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("text", ADAPTERS)
def test_every_adapter_begins_where_its_export_ended(
    text: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Also under another seed, whose own frozen numbers are others; or one line says why not."""
    made = session_of(text, folders)
    policy = logits(made.prepared.model)
    export_adapter(
        adapter_of(made.prepared, tmp_path, text), made.policy, base_of(folders), tmp_path
    )
    config = replace(TrainConfig(), model=str(folders["qwen2"]), update=text, seed=5)
    config = replace(config, compute=Compute("cpu"), init_adapter=str(tmp_path))
    try:
        again = session.prepare(config)
    except UserError as error:
        assert text.split("(")[0] in WITHOUT, error
        assert "\n" not in str(error)
        return
    assert text.split("(")[0] not in WITHOUT
    torch.testing.assert_close(logits(again.prepared.model), policy, atol=1e-5, rtol=1e-5)
    with again.prepared.reference():
        bare = logits(again.prepared.model)
    torch.testing.assert_close(bare, logits(base_of(folders)), atol=1e-5, rtol=1e-5)
    assert again.prepared.trainable.keys() == made.prepared.trainable.keys()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_run_begins_with_an_adapter(
    quick: TrainConfig, folders: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    """Its first policy is the adapter's; the reference of the KL term is the base without it."""
    config = replace(config_of(quick, folders, adapter), objective="grpo(kl=0.1)", steps=2)
    train(config, notes := Notes())
    assert any("the adapter begins with the values in" in note for note in notes.told)
    run = Path(config.out)
    first = runs.read_lines(run / "metrics.jsonl")[0]
    assert first["policy/kl"] > 1e-4
    assert runs.read_object(run / "result.json")["anatomy"]["tensors_changed"] > 0
    known = began(run)["base"]
    assert known["init_hash"] and "adapter_hash" not in known
    # It goes on, and is exported: as an adapter on the bare base.
    train(replace(config, steps=3), resume=True)
    export_run(run, tmp_path / "out", "adapter", overwrite=False)
    from peft import PeftModel

    found = PeftModel.from_pretrained(base_of(folders), str(tmp_path / "out")).eval()
    policy = logits(checkpoint.reload(run).prepared.model)
    torch.testing.assert_close(logits(found), policy, atol=1e-4, rtol=1e-4)
    assert "`adapter`" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_needs_the_adapter_that_it_began_with(
    quick: TrainConfig, folders: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    config = replace(config_of(quick, folders, adapter), steps=2)
    train(config)
    run, more = Path(config.out), replace(config, steps=3)
    with pytest.raises(UserError, match=r"another adapter to begin with.*that of .* is None"):
        train(replace(more, init_adapter=""), resume=True)
    other = shutil.copytree(adapter, tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: 2 * t for name, t in tensors.items()}, other / "adapter_model.safetensors")
    with pytest.raises(UserError, match="another adapter to begin with"):
        train(replace(more, init_adapter=str(other)), resume=True)
    moved = adapter.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="adapter is no folder with adapter_config"):
        train(more, resume=True)
    train(replace(more, init_adapter=str(moved)), resume=True)
    assert len(metrics_of(run)) == 3


def test_a_run_goes_on_as_if_it_had_not_ended(
    quick: TrainConfig, folders: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    config = config_of(quick, folders, adapter)
    whole, cut = (replace(config, out=str(tmp_path / name)) for name in ("whole", "cut"))
    train(replace(whole, steps=3))
    train(replace(cut, steps=1))
    train(replace(cut, steps=3), resume=True)
    assert metrics_of(Path(whole.out)) == metrics_of(Path(cut.out))
    assert tensors_of(Path(whole.out)) == tensors_of(Path(cut.out))


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ("lora(rank=3)", r"does not fit lora\(rank=3\), .*: r is 2, not 3"),
        ("lora(rank=2, alpha=5)", r"lora_alpha is 32, not 5"),
        ("rslora(rank=2, alpha=32)", "use_rslora is None, not True"),
        ("ia3", "feedforward_modules|peft_type is LORA, not"),
        ("lora(rank=2) @ last(1)", r"the tensor base_model.*layers.0.* is \(2, \d+\), not None"),
        ("pissa(rank=2)", "is no adapter on a base that stays"),
        ("last(1)", r"last\(1\) is no adapter on a base"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    quick: TrainConfig, folders: dict[str, Path], adapter: Path, update: str, words: str
) -> None:
    with pytest.raises(UserError, match=words) as found:
        session.prepare(replace(config_of(quick, folders, adapter), update=update))
    assert "\n" not in str(found.value)


def test_other_bases_and_broken_files_are_refused(
    quick: TrainConfig, folders: dict[str, Path], adapter: Path, tmp_path: Path, fails: Fails
) -> None:
    config = config_of(quick, folders, adapter)
    with pytest.raises(UserError, match="was trained on another base model: its hash differs"):
        session.prepare(replace(config, model=str(folders["llama"])))
    with pytest.raises(UserError, match="is no adapter on a base that stays"):
        session.prepare(replace(config, model=str(adapter)))
    (adapter / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="adapter does not fit"):
        session.prepare(config)
    line = fails("train", "--update", "lora", "--init-adapter", str(tmp_path / "none"))
    assert "none is no folder with adapter_config.json and adapter_model.safetensors" in line


def test_python_takes_the_setting(
    folders: dict[str, Path], adapter: Path, tmp_path: Path, quick: TrainConfig
) -> None:
    result = modicum.train(
        model=str(folders["qwen2"]),
        update="lora(rank=2)",
        init_adapter=str(adapter),
        task=quick.task,
        steps=1,
        out=str(tmp_path / "face"),
        eval_problems=0,
        anatomy=False,
        learning_rate=1e-3,
        progress=False,
    )
    assert began(result.folder)["base"]["init_hash"]


def test_the_adapter_is_in_the_name_of_a_run_and_is_spared(
    quick: TrainConfig, folders: dict[str, Path], adapter: Path
) -> None:
    config = config_of(quick, folders, adapter)
    names = {name_of(replace(config, init_adapter=of)) for of in ("", "a", "b")}
    assert len(names) == 3
    train(replace(config, steps=1))
    with pytest.raises(UserError, match="is the adapter that it began with"):
        export_run(Path(config.out), adapter, "adapter", overwrite=True)
    inside = adapter.rename(Path(config.out) / "adapter")
    with pytest.raises(UserError, match="--overwrite would lose it"):
        train(replace(config, init_adapter=str(inside)), overwrite=True)
    assert (inside / "adapter_config.json").is_file()
