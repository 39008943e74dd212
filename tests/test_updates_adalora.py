"""AdaLoRA: its budget, scores and penalty by hand, in training and in an export; errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import random_model
from modicum import runs, updates
from modicum.config import Held, Optimizer, Records, Sampling, Steps, TrainConfig
from modicum.training import session, step
from modicum.training.loop import train
from modicum.types import Batch, Row, UserError
from modicum.updates.adapter import quiet

ADALORA = "adalora(rank=2, init_rank=4, warmup=2, tail=3)"
ROWS = tuple(Row((40, 41), (50 + i, 60), (-5.5, -5.5), (-1.0) ** i, group=i // 2) for i in range(4))
IDS = torch.tensor([[40, 41, 42, 43, 44, 45]])


def apply(text: str) -> Any:
    return updates.parse(text).apply(random_model("qwen2"), 0)


def budgets(first: int, target: int, total: int, warmup: int, tail: int) -> list[int]:
    """The paper's formula for the steps 1 .. total."""
    found = []
    for t in range(1, total + 1):
        left = 1 - (t - warmup) / (total - tail - warmup)
        curve = first if t <= warmup else target + (first - target) * max(left, 0.0) ** 3
        found.append(math.floor(curve))
    return found


def feed(prepared: Any, seed: int) -> dict[str, Tensor]:
    """Give everything a random gradient, E random values too, and tell the schedule.

    Returns the values that the schedule saw.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = {}
    for name, parameter in prepared.trainable.items():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if ".lora_E." in name:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        seen[name] = parameter.detach().clone()
    gradients = {n: p.grad for n, p in prepared.trainable.items()}
    prepared.schedule.stepped(prepared.trainable, gradients)
    return seen


def test_ranks_fall_by_the_cubic_formula() -> None:
    prepared = apply(ADALORA)
    prepared.schedule.plan(12)
    counts, layers = [], 21
    for t in range(12):
        feed(prepared, t)
        counts.append(sum(prepared.schedule.ranks().values()))
    assert counts == budgets(4 * layers, 2 * layers, 12, 2, 3)
    assert counts[1] == 84 and counts[2] < 84 and counts[8:] == [42] * 4


def test_what_is_pruned_has_the_lowest_score() -> None:
    """Importance, its two averages and the triplets' scores, computed again here."""
    prepared = apply("adalora(rank=1, init_rank=3, warmup=1, tail=0, beta1=0.7, beta2=0.6)")
    schedule, trained = prepared.schedule, prepared.trainable
    schedule.plan(4)
    mean = {n: torch.zeros_like(p) for n, p in trained.items()}
    doubt = {n: torch.zeros_like(p) for n, p in trained.items()}
    for t in range(1, 4):
        seen = feed(prepared, t)
        score = {}
        for name, parameter in trained.items():
            importance = (seen[name] * parameter.grad).abs()
            mean[name] = 0.7 * mean[name] + 0.3 * importance
            doubt[name] = 0.6 * doubt[name] + 0.4 * (importance - mean[name]).abs()
            score[name] = mean[name] * doubt[name]
        triplets_of = {
            name: score[name].flatten()
            + score[name.replace("lora_E", "lora_A")].mean(1)
            + score[name.replace("lora_E", "lora_B")].mean(0)
            for name in schedule.may_return
        }
        every = torch.cat(list(triplets_of.values()))
        budget = budgets(63, 21, 4, 1, 0)[t - 1]
        least = every.sort(descending=True).values[budget - 1]
        for name, found in triplets_of.items():
            assert torch.equal(trained[name].flatten() != 0, found >= least), (t, name)


def test_the_penalty_has_the_gradient_of_autograd() -> None:
    prepared = apply("adalora(rank=2, init_rank=3, orthogonal=0.7)")
    feed(prepared, 3)
    with torch.no_grad():
        for parameter in prepared.trainable.values():
            assert parameter.grad is not None
            parameter.add_(0.1 * parameter.grad)
    penalty, count = torch.zeros(()), 0
    for name, parameter in prepared.trainable.items():
        if ".lora_E." not in name:
            rows = parameter if ".lora_A." in name else parameter.T
            penalty = penalty + torch.linalg.norm(rows @ rows.T - torch.eye(3))
            count += 1
    names = list(prepared.trainable)
    wanted = torch.autograd.grad(
        0.7 * penalty / count, list(prepared.trainable.values()), allow_unused=True
    )
    found = {n: torch.ones_like(p) for n, p in prepared.trainable.items()}
    prepared.schedule.gradients(found)
    assert prepared.schedule.edits_gradients
    for name, slope in zip(names, wanted, strict=True):
        expected = torch.zeros(()) if slope is None else slope
        torch.testing.assert_close(
            found[name] - 1, expected.expand_as(found[name]), atol=1e-6, rtol=1e-4
        )


def adalora_session(folders: dict[str, Path], text: str, steps: int) -> session.Session:
    return session.prepare(
        replace(
            TrainConfig(),
            model=str(folders["qwen2"]),
            update=text,
            steps=steps,
            optimizer=Optimizer(learning_rate=1e-2),
        )
    )


def take(made: session.Session, signal: bool = True) -> dict[str, Any] | None:
    decided = step.switch(made)
    step.optimizer_step(
        made, step.backward(made, Batch(ROWS, 4, 8, frozenset({0, 1})), {})["loss"], signal
    )
    return decided


def test_ranks_fall_in_training_and_are_logged_once(folders: dict[str, Path]) -> None:
    """Steps without a signal are not counted, and cannot bring back what was pruned for good."""
    made = adalora_session(folders, "adalora(rank=1, init_rank=2, warmup=0, tail=1)", 4)
    schedule: Any = made.prepared.schedule
    expected = budgets(42, 21, 4, 0, 1)
    decisions = []
    for signal, taken in [(True, 1), (False, 1), (True, 2), (True, 3)]:
        decisions.append(take(made, signal))
        assert schedule.taken == taken
        if signal:
            assert sum(schedule.ranks().values()) == expected[taken - 1]
    pruned = {n for n, rank in schedule.ranks().items() if rank < 2}
    decisions.append(take(made, signal=False))
    assert sum(schedule.ranks().values()) == 21, "though Adam's momentum moved what was at zero"
    decisions.append(step.switch(made))
    assert {n for n, rank in schedule.ranks().items() if rank < 2} == pruned
    (logged,) = [found for found in decisions if found is not None]
    assert decisions.index(logged) == 4
    assert logged["trains"] == "all"
    ranks = logged["evidence"]["ranks"]
    assert logged["evidence"]["budget"] == 21 == sum(ranks.values()) and len(ranks) == 21
    assert "frozen ones are bit-identical" in made.proof.check("test")


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_cut_is_zero_after_every_step(every: int, folders: dict[str, Path]) -> None:
    """With a signal or without, while ranks fall and afterwards: 23 of 42 after step 2, then 21."""
    text = f"adalora(rank=1, init_rank=2, warmup=0, tail=2, every={every})"
    made = adalora_session(folders, text, 6)
    schedule: Any = made.prepared.schedule
    counts = []
    for signal in (True, True, False, True, False, True, False, True, False):
        take(made, signal)
        counts.append(sum(schedule.ranks().values()))
    first = {1: [29], 2: [42]}[every]
    third = {1: [21, 21], 2: [23, 23]}[every]
    assert counts == [*first, 23, 23, *third, 21, 21, 21, 21]


def test_a_run_that_ends_without_a_signal_has_its_ranks(tmp_path: Path) -> None:
    """Under a KL term such steps move what was cut, and no step follows that would cut it."""
    out = tmp_path / "run"
    train(
        replace(
            TrainConfig(),
            task="arithmetic(terms=3,digits=1)",
            objective="grpo(kl=0.04)",
            update="adalora(rank=1, init_rank=3, warmup=0, tail=4)",
            steps=12,
            out=str(out),
            optimizer=Optimizer(learning_rate=1e-2),
            sampling=Sampling(max_tokens=16),
            batch=Steps(prompts_per_step=1, group_size=4),
            evaluation=Held(eval_problems=0),
            records=Records(anatomy=False),
        )
    )
    last = runs.read_lines(out / "metrics.jsonl")[-1]
    assert last["groups/no_signal"] == 1
    values = load_file(runs.checkpoints(out)[-1] / "tensors.safetensors")
    entries = [v for n, v in values.items() if n.startswith("value/") and ".lora_E." in n]
    assert sum(v.numel() for v in entries) == 126
    assert sum(int(v.count_nonzero()) for v in entries) == 42
    (decided,) = runs.read_lines(out / "decisions.jsonl")
    assert decided["evidence"]["budget"] == 42


def test_a_run_of_one_step_is_pruned(folders: dict[str, Path]) -> None:
    made = adalora_session(folders, "adalora(rank=1, init_rank=2)", 1)
    take(made)
    schedule: Any = made.prepared.schedule
    assert sum(schedule.ranks().values()) == 21


def test_the_run_must_leave_steps_to_allocate_in() -> None:
    prepared = apply("adalora(warmup=4, tail=0.5)")
    with pytest.raises(UserError, match="take 8 steps and leave none of the run's 8"):
        prepared.schedule.plan(8)
    prepared.schedule.plan(10)
    assert prepared.schedule.last == 5


def test_adalora_is_exported_with_zeros_for_what_was_pruned(tmp_path: Path) -> None:
    from peft import PeftModel

    prepared = apply(ADALORA)
    prepared.schedule.plan(12)
    for t in range(6):
        feed(prepared, t)
    with torch.no_grad():
        before = prepared.model(input_ids=IDS).logits
        prepared.exportable().save_pretrained(tmp_path, save_embedding_layers=False)
        with quiet():
            again: Any = PeftModel.from_pretrained(random_model("qwen2"), str(tmp_path)).eval()
        torch.testing.assert_close(again(input_ids=IDS).logits, before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adalora(rank=8, init_rank=8)", r"init_rank must be above rank \(8\)"),
        ("adalora(every=0)", "every must be at least 1"),
        ("adalora(warmup=-1)", "warmup must be at least 0"),
        ("adalora(tail=1.5)", "shares below 1 or numbers of steps"),
        ("adalora(warmup=0.6, tail=0.4)", "less than the whole run"),
        ("adalora(beta1=1)", "beta1 must be above 0 and below 1"),
        ("adalora(orthogonal=-1)", "orthogonal must be at least 0"),
    ],
)
def test_what_does_not_fit_is_a_user_error(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        apply(text)
