"""Updates in other training loops: a loop by hand, transformers.Trainer, TRL's GRPOTrainer."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import random_model
from modicum import session, step, updates
from modicum.config import Optimizer, TrainConfig
from modicum.types import RunStopped, UserError
from modicum.updates import UPDATES
from modicum.updates.adapter import Adapter
from modicum.updates.base import DensePrepared, Selection
from modicum.updates.schedule import Decision, Schedule
from test_updates import IDS, batch_of

# Selections and adapters differ in what trains, all others in how.
EXPRESSIONS = [
    text
    for cls in UPDATES.values()
    for text in cls.examples[: 1 if issubclass(cls, Selection | Adapter) else None]
]
STEPS = 4
DOCS = Path(__file__).parent.parent / "docs" / "outside.md"
NAME = "model.layers.{}.mlp.up_proj.weight".format


def by_hand(schedule: Schedule | None = None, layers: tuple[int, ...] = (1, 2)) -> DensePrepared:
    """One matrix trains in each of some layers."""
    model = random_model("llama")
    named = dict(model.named_parameters())
    return DensePrepared(model, {NAME(i): named[NAME(i)] for i in layers}, schedule=schedule)


def backward(prepared: Any, scale: float = 1.0) -> None:
    (prepared.model(input_ids=IDS).logits.square().mean() * scale).backward()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model: nn.Module, old: dict[str, Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, old[name])}


# The same as the package's own loop ------------------------------------------------------


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_the_driver_does_what_the_package_does(text: str, folders: dict[str, Path]) -> None:
    """Every update, on the same gradients: switches, moments, rates, clipping."""
    settings = Optimizer(learning_rate=1e-2, max_grad_norm=0.05)
    config = replace(TrainConfig(), model=str(folders["qwen2"]), update=text, optimizer=settings)
    own, other = session.prepare(config), session.prepare(config)
    # Without masters gradients stay where backward puts them.
    other.masters.drop(other.masters.held)
    try:
        driver = updates.Driver(other.prepared, settings.max_grad_norm)
    except UserError as error:
        assert "every group" in str(error)
        assert own.prepared.schedule.ever_by_group
        return
    optimizer = driver.optimizer(learning_rate=1e-2)
    driver.attach(optimizer, config.steps)
    for _ in range(STEPS):
        step.switch(own)
        driver.begin_step()
        other.engine.follow(other.prepared.lowest_layer)
        step.optimizer_step(own, step.backward(own, batch_of(own), {})["loss"])
        step.backward(other, batch_of(other), {})
        driver.after_backward()
        optimizer.step()
        driver.after_step()
        optimizer.zero_grad()
    assert own.signal_steps == driver.signal_steps == STEPS
    assert own.prepared.active.keys() == other.prepared.active.keys()
    assert own.decisions == len(driver.decisions)
    for name, parameter in own.prepared.trainable.items():
        found = other.prepared.trainable[name]
        if name in own.optimization.entries:  # a difference is added to the start at another time
            torch.testing.assert_close(found, parameter, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(found, parameter), name
    assert own.prepared.schedule.state() == other.prepared.schedule.state()
    frozen = len(other.prepared.frozen)
    assert driver.report().endswith(f"{frozen} frozen ones are bit-identical")


# A loop by hand --------------------------------------------------------------------------


class Turns(Schedule):
    """One matrix at a time, in order."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.start = frozenset([NAME(1)])

    def decide(self, steps: int) -> Decision | None:
        return Decision(frozenset([NAME(1 + steps % 2)]))


class Rates(Schedule):
    """Half a step for one matrix and none for the other; notes the norms that it is shown."""

    def __init__(self) -> None:
        super().__init__({NAME(1): 0.5, NAME(2): 0.0})
        self.norms: list[float] = []

    def gradients(self, found: Any) -> None:
        self.norms.append(float(found[NAME(1)].norm()))


def test_multipliers_hold_for_one_step_and_the_rate_scheduler_goes_on() -> None:
    """By hand: SGD moves a tensor by rate x multiplier x gradient."""
    prepared = by_hand(Rates(), layers=(0, 1, 2))
    optimizer = torch.optim.SGD(prepared.trainable.values(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 1 / (number + 1))
    driver = updates.Driver(prepared).attach(optimizer, 2)
    for rate in (0.5, 0.25):
        old = values(prepared.model)
        driver.begin_step()
        backward(prepared)
        driver.after_backward()
        optimizer.step()
        for layer, factor in ((0, 1.0), (1, 0.5), (2, 0.0)):
            parameter = prepared.trainable[NAME(layer)]
            wanted = old[NAME(layer)] - rate * factor * parameter.grad
            torch.testing.assert_close(parameter, wanted)
        driver.after_step()
        assert [len(group["params"]) for group in optimizer.param_groups] == [3]
        scheduler.step()
        optimizer.zero_grad()
    assert "2 of 3 trainable tensors changed, 1 had a gradient and did not change" in (
        driver.report()
    )


@pytest.mark.parametrize(
    ("policy", "has_state", "steps"), [("keep", True, 2), ("reset", False, 1), ("cpu", False, 2)]
)
def test_state_of_what_stops_follows_the_policy(policy: str, has_state: bool, steps: int) -> None:
    """After turns 1, 2, 1: AdamW counts the steps of a tensor in its state."""
    prepared = by_hand(Turns(policy))
    optimizer = torch.optim.AdamW(prepared.trainable.values(), lr=1e-2, weight_decay=0.1)
    driver = updates.Driver(prepared).attach(optimizer, 3)
    for number in range(3):
        old = values(prepared.model)
        driver.begin_step()
        name = NAME(1 + number % 2)
        assert {n for n, p in prepared.model.named_parameters() if p.requires_grad} == {name}
        prepared.model.requires_grad_(True)  # as PEFT does when an adapter was off for a while
        backward(prepared)
        driver.after_backward()
        optimizer.step()
        driver.after_step()
        assert changed(prepared.model, old) == {name}
        optimizer.zero_grad(set_to_none=False)
    there = {n for n, p in prepared.trainable.items() if p in optimizer.state}
    assert there == ({NAME(1), NAME(2)} if has_state else {NAME(1)})
    assert optimizer.state[prepared.trainable[NAME(1)]]["step"] == steps
    assert "2 of 2 trainable tensors changed, 1 of them rest now" in driver.report()


def test_only_the_entries_move_under_decay_and_momentum() -> None:
    where = torch.tensor([3, 40])
    prepared = by_hand(Schedule(entries={NAME(1): where}))
    optimizer = torch.optim.AdamW(prepared.trainable.values(), lr=1e-2, weight_decay=0.1)
    driver = updates.Driver(prepared).attach(optimizer, 2)
    old = values(prepared.model)
    for _ in range(2):
        driver.begin_step()
        backward(prepared)
        driver.after_backward()
        optimizer.step()
        driver.after_step()
        optimizer.zero_grad()
    moved = (prepared.trainable[NAME(1)] != old[NAME(1)]).flatten().nonzero().flatten()
    assert moved.tolist() == where.tolist()
    assert changed(prepared.model, old) == {NAME(1), NAME(2)}
    driver.report()
    with torch.no_grad():
        prepared.trainable[NAME(1)].flatten()[4] += 1
    with pytest.raises(RunStopped, match="has changed where it should not train"):
        driver.report()


def test_a_schedule_sees_gradients_before_the_driver_clips_them() -> None:
    schedule = Rates()
    prepared = by_hand(schedule)
    optimizer = torch.optim.SGD(prepared.trainable.values(), lr=0.1)
    driver = updates.Driver(prepared, max_grad_norm=0.01).attach(optimizer, 1)
    driver.begin_step()
    backward(prepared)
    grads = [p.grad.clone() for p in prepared.trainable.values()]
    driver.after_backward()
    assert schedule.norms == [float(grads[0].norm())]
    norm = float(torch.stack([grad.norm() for grad in grads]).norm())
    assert norm > 0.01
    for parameter, grad in zip(prepared.trainable.values(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad * 0.01 / norm)


def test_steps_without_a_signal_are_not_counted_and_not_finite_ones_are_skipped() -> None:
    prepared = by_hand(Turns("keep"))
    optimizer = torch.optim.AdamW(prepared.trainable.values(), lr=1e-2, weight_decay=0.1)
    driver = updates.Driver(prepared).attach(optimizer, 5)
    old = values(prepared.model)

    def take(scale: float) -> None:
        driver.begin_step()
        backward(prepared, scale)
        driver.after_backward()
        optimizer.step()
        driver.after_step()
        optimizer.zero_grad()

    take(0.0)
    assert (driver.steps, driver.signal_steps) == (1, 0)
    old = values(prepared.model)
    take(float("nan"))
    take(float("inf"))
    assert (driver.skipped, driver.signal_steps) == (2, 0)
    assert changed(prepared.model, old) == set()
    take(1.0)
    assert driver.signal_steps == 1
    take(float("nan"))
    take(float("nan"))
    with pytest.raises(RunStopped, match="not finite for 3 steps"):
        take(float("nan"))


def test_what_goes_wrong_in_a_loop_is_said() -> None:
    prepared = updates.select("lisa(layers=1, every=1)").apply(random_model("llama"))
    driver = updates.Driver(prepared)
    with pytest.raises(UserError, match=r"call driver\.attach"):
        driver.begin_step()
    half = torch.optim.AdamW([p for p in prepared.model.parameters() if p.requires_grad])
    with pytest.raises(UserError, match=r"does not hold model\.layers"):
        driver.attach(half, 1)
    galore = updates.Driver(updates.select("galore(rank=4)").apply(random_model("llama")))
    with pytest.raises(UserError, match="has an optimizer of its own"):
        galore.attach(torch.optim.AdamW(galore.prepared.trainable.values()), 1)
    with pytest.raises(UserError, match="max_grad_norm must be at least 0"):
        updates.Driver(prepared, max_grad_norm=-1)
    other = by_hand()
    other.model.activation_checkpointing_enable({"use_reentrant": True})
    optimizer = torch.optim.SGD(other.trainable.values())
    with pytest.raises(UserError, match="reentrant gradient checkpointing"):
        updates.Driver(other).attach(optimizer, 1)
    coarse = updates.select("last(1)").apply(random_model("llama").bfloat16())
    with pytest.warns(UserWarning, match="too coarse for a learning rate of 1e-06"):
        updates.Driver(coarse).attach(
            torch.optim.SGD(coarse.trainable.values(), lr=1e-6), total_steps=1
        )


@pytest.mark.parametrize(
    ("name", "words"), [(NAME(0), "should be frozen"), (NAME(2), "rested and has changed")]
)
def test_a_change_of_what_should_not_is_found(name: str, words: str) -> None:
    prepared = by_hand(Turns("keep"))
    driver = updates.Driver(prepared)
    driver.attach(torch.optim.SGD(prepared.trainable.values()), 1)
    assert driver.report() == (
        "0 of 2 trainable tensors changed, 1 of them rest now, 28 frozen ones are bit-identical"
    )
    with torch.no_grad():
        prepared.model.get_parameter(name)[0, 0] += 1e-3
    with pytest.raises(RunStopped, match=f"{name} {words}"):
        driver.report()


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
    assert callback.driver.signal_steps == 3


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
    assert (callback.driver.steps, callback.driver.signal_steps) == (3, 0)
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
