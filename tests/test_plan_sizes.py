"""Sizes that are left to the program, and layers that are left out of a plan."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modicum import recipes, runs
from modicum.config import Compute, Held, Sampling, Steps, TrainConfig
from modicum.parts import RunParts
from modicum.plan import hardware, sizes
from modicum.plan.hardware import GIB, Machine
from modicum.plan.memory import Memory, Phase, Subject, estimate
from modicum.plan.shapes import Lengths
from modicum.plan.sizes import search, settle
from modicum.training.loop import train
from modicum.updates import parse

LENGTHS = Lengths(12, 12, 16, 16)
CARD = Machine("card", "cuda", 100, None)


def linear(config: TrainConfig, *_: Any, **__: Any) -> Memory:
    """A completion in training takes 4, or 1 where it is recomputed; one in sampling 1."""
    each = 1 if config.compute.checkpointing else 4
    training = {"weights": 20, "activations": each * config.batch.micro_batch}
    sampling = {"weights": 20, "cache": config.batch.rollout_batch}
    return Memory((Phase("sampling", sampling), Phase("training", training)))


def test_the_shipped_base_has_the_sizes_that_it_was_tuned_with(monkeypatch: Any) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda device: 64 * GIB)
    found, chosen = settle(TrainConfig())
    assert (found.batch.micro_batch, found.batch.rollout_batch) == (64, 512)
    assert (found.sampling.max_tokens, found.compute.checkpointing) == (80, False)
    assert sizes.note(found, chosen) == (
        "chosen: --max-tokens 80, --micro-batch 64, --rollout-batch 512, because the shipped base"
        " writes less than 80 tokens; 54.4 GiB are far more than it takes"
    )
    assert settle(found) == (found, {})


def test_what_is_given_is_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda device: 64 * GIB)
    config = TrainConfig(
        sampling=Sampling(max_tokens=7),
        batch=Steps(micro_batch=3),
        compute=Compute(checkpointing=True),
    )
    found, chosen = settle(config)
    assert list(chosen) == ["rollout_batch"]
    assert (found.sampling.max_tokens, found.batch.micro_batch) == (7, 3)
    assert found.compute.checkpointing is True


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (2000, (128, 1024, False)),  # the whole step and the whole evaluation
        (300, (64, 256, False)),
        (100, (16, 64, False)),
        (60, (8, 32, False)),
        (50, (16, 16, True)),  # 7 without checkpointing
        (29, (8, 8, True)),
        (20, (1, 8, True)),  # nothing fits: the smallest
    ],
)
def test_the_largest_batches_are_found(
    room: int, expected: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []

    def counted(config: TrainConfig, *_: Any, **__: Any) -> Memory:
        asked.append(config)
        return linear(config)

    monkeypatch.setattr(sizes, "estimate", counted)
    monkeypatch.setattr(sizes, "floor", lambda *_: 0)
    config = replace(TrainConfig(), evaluation=Held(256, 4))
    names = ("micro_batch", "rollout_batch", "checkpointing")
    subject = Subject.of(config)
    monkeypatch.setattr(sizes, "room_of", lambda _: room)
    found, planned = search(config, LENGTHS, CARD, names, subject)
    batch = found.batch
    assert (batch.micro_batch, batch.rollout_batch, found.compute.checkpointing) == expected
    assert planned == linear(found) and len(asked) <= 6


def test_advice_is_one_line_and_changes_the_model_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "estimate", linear)
    monkeypatch.setattr(sizes, "floor", lambda *_: 0)
    config = TrainConfig(update="lora", compute=Compute(checkpointing=False))
    subject = Subject.of(config)
    found = sizes.advice(config, CARD, LENGTHS, subject)
    assert found == "with --micro-batch 16 --rollout-batch 64: 0.00 GiB, fits"

    def small(config: TrainConfig, *given: Any, **named: Any) -> Memory:
        done = config.compute.dtype == "bf16" and config.update == "last(1)"
        return linear(config) if done else Memory((Phase("training", {"weights": 101}),))

    monkeypatch.setattr(sizes, "estimate", small)
    found = sizes.advice(config, CARD, LENGTHS, subject)
    line = "--micro-batch 16 --rollout-batch 64 --dtype bf16 --update 'last(1)'"
    assert found == f"with {line}: 0.00 GiB, fits"
    monkeypatch.setattr(sizes, "estimate", lambda *_, **__: small(config))
    assert "not even so" in sizes.advice(config, CARD, LENGTHS, subject)


def test_as_much_of_the_model_as_fits_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base has six layers; four of them fit."""

    def by_layers(config: TrainConfig, *_: Any, **__: Any) -> Memory:
        last = re.fullmatch(r"last\((\d)\)", config.update)
        weights = 20 * int(last[1]) if last else 200
        return Memory((Phase("training", {"weights": weights}),))

    monkeypatch.setattr(sizes, "estimate", by_layers)
    monkeypatch.setattr(sizes, "floor", lambda *_: 0)
    compute = Compute(dtype="bf16", checkpointing=False)
    config = TrainConfig(update="full", compute=compute, evaluation=Held(0))
    found = sizes.advice(config, CARD, LENGTHS, Subject.of(config))
    assert found.endswith(" --update 'last(4)': 0.00 GiB, fits")
    given = RunParts(update=parse("full"))
    found = sizes.advice(config, CARD, LENGTHS, Subject.of(config, given))
    assert "--update" not in found and "not even so" in found


@pytest.mark.parametrize(("device", "memory"), [("cuda", 160), ("cpu", 170)])
def test_sizes_are_chosen_for_a_share_of_the_memory(
    device: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 and 128 take 148 bytes: there are 160, or 170, but 90 % and 85 % of them are 144."""
    monkeypatch.setattr(sizes, "estimate", linear)
    monkeypatch.setattr(sizes, "floor", lambda *_: 0)
    config = TrainConfig(sampling=Sampling(max_tokens=16))
    found, chosen = settle(config, machine=Machine("card", device, memory, None))
    assert (found.batch.micro_batch, found.batch.rollout_batch) == (16, 64)
    share = {"cuda": "90% of the memory", "cpu": "85% of the memory"}[device]
    assert share in chosen["micro_batch"].why


def test_completions_are_twice_as_long_as_the_worked_solutions(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "free_memory", lambda device: 64 * GIB)
    long = [{"question": f"q{i}", "answer": f"{'1+1=2 ' * 40}\n#### {i}"} for i in range(60)]
    (tmp_path / "train.jsonl").write_text(runs.to_lines(long))
    task = f"file('{tmp_path / 'train.jsonl'}')"
    config = TrainConfig(model=str(folders["qwen2"]), task=task)
    tokens = settle(config)[1]["max_tokens"]
    assert tokens.value % 256 == 0 or "positions" in tokens.why
    arithmetic = settle(replace(config, task="arithmetic"))[1]["max_tokens"]
    assert arithmetic.value == 256 or "positions" in arithmetic.why


def test_a_run_writes_what_was_chosen_and_goes_on_with_it(bare: TrainConfig) -> None:
    config = replace(bare, steps=1)
    train(config)
    chosen = json.loads((Path(config.out) / "chosen.json").read_text())
    assert chosen.pop("learning_rate")["value"] > 0
    assert {name: of["value"] for name, of in chosen.items()} == {
        "micro_batch": 64,
        "rollout_batch": 512,
        "checkpointing": False,
    }
    assert all(of["why"] for of in chosen.values())
    train(replace(config, steps=2), resume=True)
    kept = json.loads((Path(config.out) / "chosen.json").read_text())
    assert {name: kept[name] for name in chosen} == chosen


def test_an_object_in_the_place_of_an_update_is_planned_for(monkeypatch: Any) -> None:
    """`given('...')` stands in the config, which no parser takes."""
    monkeypatch.setattr(sizes, "free_memory", lambda device: 50 * 2**20)
    parts = RunParts(update=parse("last(1)"))
    config = replace(TrainConfig(), update="given('mine')", evaluation=Held(0))
    found, _ = settle(config, parts)
    assert 1 <= found.batch.micro_batch <= 64


CARDS = {
    "addition": ("3GB", 2.6),
    "gsm8k": ("40GB", 31.1),
    "tinyzero": ("80GB", 61.7),
    "r1_zero": ("80GB", 47.7),
    "tina": ("24GB", 10.9),
    "lora_rank1": ("16GB", 12.7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_needs_what_it_says(name: str) -> None:
    card, stated = CARDS[name]
    config = recipes.named(name)
    known = config.model.replace(
        "models/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"
    )
    config, _ = settle(replace(config, model=known), machine=hardware.parse(card), prompt=256)
    subject, lengths = Subject.of(config), Lengths(255, 256, *[config.sampling.max_tokens] * 2)
    planned = estimate(config, lengths, "cuda", subject).peak.total
    assert planned <= (hardware.parse(card).memory or 0)
    assert planned / GIB == pytest.approx(stated, rel=0.1)
    assert f"{stated:g} GiB" in recipes.about(name) and card[:-2] in recipes.about(name)
