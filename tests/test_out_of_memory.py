"""Memory that runs out, in sampling, evaluation and training: smaller batches, the same result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import metrics_of
from modicum import runs
from modicum.config import Held, TrainConfig, read_toml
from modicum.engine.split import SplitEngine
from modicum.models.precision import Masters
from modicum.training.loop import Observer, train
from modicum.types import UserError
from modicum.updates.stepper import Stepper

CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: not enough memory: you tr"
ERRORS = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError(CPU)]


class Told(Observer):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def short_of(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    too_much: Callable[..., bool],
    error: Exception = ERRORS[0],
) -> list[int]:
    """Let a method run out of memory, after its work, where it is asked too much."""
    method, failed = getattr(owner, name), [0]

    def limited(self: Any, *given: Any, **named: Any) -> Any:
        found = method(self, *given, **named)
        if too_much(*given, **named):
            failed[0] += 1
            raise error
        return found

    monkeypatch.setattr(owner, name, limited)
    return failed


def compared(config: TrainConfig, tmp_path: Path, short: Callable[[], Any]) -> tuple[Any, Told]:
    """Runs with and without enough memory have the same metrics; the second's result."""
    whole = train(replace(config, out=str(tmp_path / "whole")))
    short()
    told = Told()
    found = train(config, told)
    for one, other in zip(
        metrics_of(tmp_path / "whole"), metrics_of(Path(config.out)), strict=True
    ):
        one, other = ({k: v for k, v in m.items() if "flops" not in k} for m in (one, other))
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
    for name in ("base", "trained"):
        assert (found[name] or {}).get("scores") == (whole[name] or {}).get("scores")
    return found, told


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_sampling_and_evaluation_go_on_with_fewer_rows(
    error: Exception, bare: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(bare, evaluation=Held(6, 2), steps=2)
    size = config.batch.group_size

    def short() -> None:
        def too_much(prompts: Any, group: int, *_: Any) -> bool:
            return len(prompts) * group > max(size, 3)

        short_of(monkeypatch, SplitEngine, "decode", too_much, error)

    _, told = compared(config, tmp_path, short)
    (line, *_) = runs.read_lines(Path(config.out) / "changes.jsonl")
    assert line["step"] == 0 and line["settings"]["batch.rollout_batch"][1] <= max(size, 3)
    assert [n for n in told.notes if n.startswith("memory ran out; goes on, with the same result")]
    kept = read_toml(Path(config.out) / "config.toml")["batch"]["rollout_batch"]
    assert kept == line["settings"]["batch.rollout_batch"][1]


@pytest.mark.parametrize(
    ("update", "objective"),
    [
        ("full", "grpo"),
        ("last(2)", "grpo(kl=0.1)"),
        ("lora(rank=2)", "grpo(kl=0.1)"),
        ("sparse(keep=0.1)", "grpo"),
        ("snr(every=2, window=2)", "grpo"),
    ],
)
@pytest.mark.parametrize("place", ["hidden", "collect"])
def test_training_begins_a_step_anew_with_a_smaller_micro_batch(
    place: str,
    update: str,
    objective: str,
    bare: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before and after gradients are there, after some micro-batches; by groups, with a reference."""
    batch = replace(bare.batch, micro_batch=4, updates_per_rollout=2)
    # What `snr` decides after two steps depends on the last digits that a micro-batch changes.
    steps = 1 if "snr" in update else 2
    config = replace(bare, update=update, objective=objective, batch=batch, steps=steps)
    calls = [0]

    def late(*_: Any, **__: Any) -> bool:
        calls[0] += torch.is_grad_enabled()
        return torch.is_grad_enabled() and calls[0] in (2, 9)[:steps]

    failed = [[0]]

    def short() -> None:
        owner = {"hidden": SplitEngine, "collect": Masters}[place]
        failed[0] = short_of(monkeypatch, owner, place, late)

    compared(config, tmp_path, short)
    assert failed[0][0] == steps
    kept = read_toml(Path(config.out) / "config.toml")["batch"]["micro_batch"]
    assert kept == {1: 2, 2: 1}[steps]
    lines = runs.read_lines(Path(config.out) / "changes.jsonl")
    assert lines[0]["settings"]["batch.micro_batch"][0] == 4


def test_what_was_shown_of_groups_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, bare: TrainConfig, tmp_path: Path
) -> None:
    """Memory runs out when a schedule has been shown a group of the step already."""
    held: list[Any] = []

    class Held(Told):
        def begin(self, session: Any, first_step: int) -> None:
            held.append(session.prepared.schedule)

    batch = replace(bare.batch, prompts_per_step=5)
    config = replace(bare, update="snr(every=2, window=2)", batch=batch, steps=1)
    train(replace(config, out=str(tmp_path / "whole")), Held())
    failed = short_of(monkeypatch, Stepper, "show_group", once())
    train(config, Held())
    whole, mine = held
    assert failed == [1] and mine.groups == whole.groups > 1
    for name, mean in whole.means.items():
        torch.testing.assert_close(mine.means[name], mean, rtol=1e-4, atol=1e-6)


def once() -> Callable[..., bool]:
    """True at the second call alone."""
    calls = [0]

    def second(*_: Any) -> bool:
        calls[0] += 1
        return calls[0] == 2

    return second


@pytest.mark.parametrize(
    ("owner", "place", "text"),
    [
        (SplitEngine, "decode", "memory ran out while . completions of at most"),
        (
            SplitEngine,
            "hidden",
            "in training with one completion in a micro-batch: --checkpointing",
        ),
        (Stepper, "before", "memory ran out where no smaller batch helps"),
    ],
)
def test_without_a_smaller_batch_it_is_one_line(
    owner: Any, place: str, text: str, bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_training = place == "hidden"  # the agreement proof runs it too

    def too_much(*_: Any, **__: Any) -> bool:
        return not in_training or torch.is_grad_enabled()

    short_of(monkeypatch, owner, place, too_much)
    with pytest.raises(UserError, match=text) as caught:
        train(bare)
    assert "\n" not in str(caught.value)


def test_other_errors_stay(bare: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of(monkeypatch, SplitEngine, "hidden", lambda *_: True, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(bare)


def test_finding_the_rate_begins_anew_with_a_smaller_micro_batch(
    bare: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward of first steps that are tried; the weights are the base's after it."""
    batch = replace(bare.batch, prompts_per_step=8)
    unchecked = replace(bare.compute, agreement_every=0)
    config = replace(
        bare,
        batch=batch,
        compute=unchecked,
        sampling=replace(bare.sampling, max_tokens=16),
        steps=1,
    )
    whole = replace(config, out=str(tmp_path / "whole"))
    train(whole)
    failed = short_of(monkeypatch, SplitEngine, "pack", lambda rows: len(rows) > 8)
    train(config)
    assert failed[0]
    rates = [
        read_toml(Path(c.out) / "config.toml")["optimizer"]["learning_rate"]
        for c in (whole, config)
    ]
    assert rates[1] == pytest.approx(rates[0], rel=1e-3)
    one, other = (metrics_of(Path(c.out))[0] for c in (whole, config))
    assert other["policy/grad_norm"] == pytest.approx(one["policy/grad_norm"], rel=1e-4)
