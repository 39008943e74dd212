"""Updates in TRL's GRPOTrainer, which is a transformers.Trainer."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_model
from modicum import updates
from modicum.types import RunStopped, UserError
from rows import changed, values

DOCS = Path(__file__).parent.parent / "docs" / "outside.md"


# TRL -------------------------------------------------------------------------------------


@pytest.fixture
def trl() -> Any:
    """TRL and its warnings: it calls what transformers is about to rename."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        import trl

        yield trl


def turns(completions: list[str], **_: Any) -> list[float]:
    """Completions of a group are always told apart."""
    return [float(number % 2) for number in range(len(completions))]


def trainer_of(trl: Any, model: Any, out: Path, callbacks: list[Any], **settings: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    from modicum.models.load import TINY

    rewards = settings.pop("rewards", turns)
    arguments = {
        "output_dir": str(out),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "learning_rate": 1e-2,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 4,
        **settings,
    }
    return trl.GRPOTrainer(
        model,
        reward_funcs=rewards,
        args=trl.GRPOConfig(**arguments),
        train_dataset=Dataset.from_list([{"prompt": f"{i} + {i} = "} for i in range(24)]),
        processing_class=AutoTokenizer.from_pretrained(TINY),
        callbacks=callbacks,
    )


def watch_bottom(model: Any) -> list[bool]:
    """Whether what comes into layer 0 asks for gradients, in every forward that has them."""
    seen: list[bool] = []

    def look(_: Any, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            seen.append(args[0].requires_grad)

    layers = next(m.layers for m in model.modules() if hasattr(m, "layers"))
    layers[0].register_forward_pre_hook(look)
    return seen


@pytest.mark.parametrize("text", ["last(1) + parts(norm)", "lora(rank=2) @ last(1)"])
def test_grpo_trainer_trains_what_is_named(text: str, trl: Any, tmp_path: Path) -> None:
    """All else is bit-identical, and its default checkpointing does not run backward below."""
    prepared = updates.select(text).apply(random_model("qwen2"))
    callback = updates.callback(prepared)
    trainer = trainer_of(trl, prepared.model, tmp_path, [callback])
    assert trainer.args.activation_checkpointing
    old, seen = values(prepared.model), watch_bottom(prepared.model)
    trainer.train()
    assert len(seen) >= 3 and not any(seen)
    assert changed(prepared.model, old) == prepared.trainable.keys()
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in prepared.trainable.values()}
    count = len(prepared.trainable)
    assert callback.report() == (
        f"{count} of {count} trainable tensors changed,"
        f" {len(prepared.frozen)} frozen ones are bit-identical"
    )
    assert callback.driver.counters.signal_steps == 3


def test_without_the_callback_checkpointing_runs_backward_to_the_bottom(
    trl: Any, tmp_path: Path
) -> None:
    """The trap that the callback takes away; else its test would show nothing."""
    prepared = updates.select("last(1)").apply(random_model("qwen2"))
    seen = watch_bottom(prepared.model)
    trainer_of(trl, prepared.model, tmp_path, [], max_steps=1).train()
    assert seen and all(seen)


def test_a_schedule_in_grpo_trainer(trl: Any, tmp_path: Path) -> None:
    """LISA: another layer in every step, with fresh moments, and no other one moves."""
    prepared = updates.select("lisa(layers=1, every=1)").apply(random_model("qwen2"))
    callback = updates.callback(prepared)
    trainer = trainer_of(trl, prepared.model, tmp_path, [callback])
    old = values(prepared.model)
    trainer.train()
    decisions = callback.driver.decisions
    assert [decision["steps"] for decision in decisions] == [0, 1, 2]
    drawn = [decision["evidence"]["layers"] for decision in decisions]
    assert len({tuple(layers) for layers in drawn}) > 1
    trained = {name for decision in decisions for name in decision["trains"]}
    assert changed(prepared.model, old) == trained
    assert set(prepared.active) == set(decisions[-1]["trains"])
    state = trainer.optimizer.optimizer.state
    assert {id(p) for p in state} == {id(p) for p in prepared.active.values()}
    entered = {id(p): n for n, p in prepared.active.items()}
    for parameter, kept in state.items():
        name, run = entered[id(parameter)], 0
        for decision in reversed(decisions):
            if name not in decision["trains"]:
                break
            run += 1
        assert kept["step"] == run, name


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_iterations": 2}, [0, 2]),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 4}, [0, 2]),
        ({"gradient_accumulation_steps": 2}, [0, 1, 2, 3]),
    ],
)
def test_what_trains_changes_where_completions_begin(
    settings: dict[str, int], steps: list[int], trl: Any, tmp_path: Path
) -> None:
    prepared = updates.select("lisa(layers=1, every=1)").apply(random_model("qwen2"))
    callback = updates.callback(prepared)
    trainer_of(trl, prepared.model, tmp_path, [callback], max_steps=4, **settings).train()
    assert [decision["steps"] for decision in callback.driver.decisions] == steps


def test_equal_rewards_are_no_signal_in_grpo_trainer(trl: Any, tmp_path: Path) -> None:
    prepared = updates.select("lisa(layers=1, every=1)").apply(random_model("qwen2"))
    callback = updates.callback(prepared)
    old = values(prepared.model)
    rewards = {"rewards": lambda completions, **_: [1.0] * len(completions)}
    trainer_of(trl, prepared.model, tmp_path, [callback], **rewards).train()
    assert (callback.driver.steps, callback.driver.counters.signal_steps) == (3, 0)
    assert len(callback.driver.decisions) == 1
    assert changed(prepared.model, old) == set()


def test_a_reference_adapter_that_trl_adds_does_not_train(trl: Any, tmp_path: Path) -> None:
    """With a KL term TRL copies the adapter, and PEFT switches gradients on as it likes."""
    prepared = updates.select("lorafa(rank=2) @ last(1)").apply(random_model("qwen2"))
    callback = updates.callback(prepared)
    trainer = trainer_of(trl, prepared.model, tmp_path, [callback], beta=0.1)
    old = values(prepared.model)
    assert any(".ref." in name for name in old)
    trainer.train()
    assert changed(prepared.model, old) == prepared.trainable.keys()


def test_a_trainer_that_changes_what_is_frozen_is_stopped(trl: Any, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Spoils(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            with torch.no_grad():
                rest["model"].model.layers[0].mlp.up_proj.weight.add_(1e-3)

    prepared = updates.select("last(1)").apply(random_model("qwen2"))
    callbacks = [Spoils(), updates.callback(prepared)]
    trainer = trainer_of(trl, prepared.model, tmp_path, callbacks, max_steps=1)
    with pytest.raises(RunStopped, match=r"layers\.0\.mlp\.up_proj\.weight should be frozen"):
        trainer.train()


def test_a_schedule_is_not_resumed_in_a_trainer(trl: Any, tmp_path: Path) -> None:
    """A part that stays the same is."""
    for text in ("last(1)", "lisa(layers=1, every=1)"):
        folder = tmp_path / text.split("(")[0]
        for steps in (1, 2):
            prepared = updates.select(text).apply(random_model("qwen2"))
            callback = updates.callback(prepared)
            settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps}
            trainer = trainer_of(trl, prepared.model, folder, [callback], **settings)
            if steps == 2 and "lisa" in text:
                with pytest.raises(UserError, match="cannot be resumed"):
                    trainer.train(resume_from_checkpoint=True)
            else:
                trainer.train(resume_from_checkpoint=steps == 2)
                assert callback.driver.steps == 1


# The page --------------------------------------------------------------------------------


def test_the_examples_of_the_page_run(trl: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    """As they stand there, but for a small model, fewer steps and another folder."""
    blocks = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    assert len(blocks) == 2
    smaller = {
        '"Qwen/Qwen2.5-0.5B-Instruct"': repr(str(folders["qwen2"])),
        "last(5)": "last(1)",
        "max_steps=200": "max_steps=1, use_cpu=True, disable_tqdm=True",
        "max_completion_length=64": "max_completion_length=4",
        '"out"': repr(str(tmp_path / "out")),
        "rollouts = 100": "rollouts = 1",
    }
    for old in smaller:
        assert any(old in block for block in blocks), old
    for block in blocks:
        for old, new in smaller.items():
            block = block.replace(old, new)
        exec(compile(block, str(DOCS), "exec"), {})
