"""The loop: same seed same run, micro-batches, resume, proofs, and steps that go wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import metrics_of, tensors_of
from modicum import runs
from modicum.config import Optimizer, Sampling, Steps, TrainConfig
from modicum.objectives import OBJECTIVES
from modicum.objectives.parts import over_deviation
from modicum.report import load
from modicum.training import hearing, rollout, step
from modicum.training.checkpoint import reload, restore
from modicum.training.loop import Observer, train
from modicum.training.optimization import Optimization
from modicum.training.session import Counters, Session, prepare
from modicum.types import Batch, Group, RunStopped, UserError
from modicum.updates.proofs import fingerprints


def sampled(session: Session) -> tuple[list[Group], Batch]:
    """The groups and the batch of step 0."""
    groups = step.sample_groups(session, 0)
    _, totals = step.score(session.task, session.reward, groups, [])
    return groups, hearing.batch_of(session, groups, totals)


def gradients(session: Session, batch: Batch) -> dict[str, Tensor]:
    """The gradient of the batch, by name of what trains."""
    step.backward(session, batch, {})
    found = {
        n: t.grad.clone()
        for n, t in session.optimization.masters.tensors.items()
        if t.grad is not None
    }
    session.optimization.clear()
    return found


@pytest.mark.parametrize("update", ["full", "last(1)", "lora(rank=2)"])
def test_same_seed_gives_the_same_run(bare: TrainConfig, tmp_path: Path, update: str) -> None:
    folders = []
    for name in ("a", "b"):
        config = replace(bare, update=update, out=str(tmp_path / name))
        train(config)
        folders.append(tmp_path / name)
    assert metrics_of(folders[0]) == metrics_of(folders[1])
    assert tensors_of(folders[0]) == tensors_of(folders[1])
    samples = [(folder / "samples.jsonl").read_text() for folder in folders]
    assert samples[0] == samples[1]


def test_another_seed_gives_another_run(bare: TrainConfig, tmp_path: Path) -> None:
    train(replace(bare, out=str(tmp_path / "a")))
    train(replace(bare, seed=1, out=str(tmp_path / "b")))
    assert metrics_of(tmp_path / "a") != metrics_of(tmp_path / "b")


@pytest.mark.parametrize("objective", ["grpo", "grpo(kl=0.1)", *OBJECTIVES])
def test_micro_batches_do_not_change_the_gradient(quick: TrainConfig, objective: str) -> None:
    batch_of = Steps(prompts_per_step=4, group_size=8, micro_batch=64)
    session = prepare(replace(quick, objective=objective, batch=batch_of))
    _, batch = sampled(session)
    assert len(batch.rows) >= 16
    # A step first, so that the policy is not the reference and ratios are not 1.
    step.backward(session, batch, {})
    step.optimizer_step(session, 0.0)
    whole = gradients(session, batch)
    for size in (1, 4, 5):
        session.config = replace(session.config, batch=replace(batch_of, micro_batch=size))
        for name, gradient in gradients(session, batch).items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-7)


def test_rows_without_signal_are_left_out_and_change_nothing(quick: TrainConfig) -> None:
    session = prepare(replace(quick, batch=Steps(prompts_per_step=2, group_size=4)))
    groups, _ = sampled(session)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    batch = step.make_batch(session.objective, groups, rewards)
    assert len(batch.rows) == 4 and batch.num_rows == 8
    alone = gradients(session, batch)
    with_all = replace(batch, rows=batch.rows + every_row(groups[1:], rewards[1:]))
    for name, gradient in gradients(session, with_all).items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-5, atol=1e-8)


def every_row(groups: Sequence[Group], rewards: Tensor) -> tuple[Any, ...]:
    """Rows of all completions, signal or not."""
    from modicum.types import Row

    table = over_deviation(rewards).tolist()
    return tuple(
        Row(group.prompt, completion.tokens, completion.logprobs, advantage)
        for group, advantages in zip(groups, table, strict=True)
        for completion, advantage in zip(group.completions, advantages, strict=True)
    )


def test_a_step_without_any_signal_changes_nothing(bare: TrainConfig) -> None:
    # The default reward is never earned by a random model.
    config = replace(bare, reward="accuracy", steps=2, optimizer=Optimizer(weight_decay=0.1))
    result = train(config)
    assert all(line["groups/no_signal"] == 1.0 for line in metrics_of(Path(config.out)))
    assert result["change_proof"].startswith("0 of")


def test_what_is_right_is_logged_where_the_reward_does_not_pay_it(
    bare: TrainConfig, tmp_path: Path
) -> None:
    for reward, key in (("random", "completions/accuracy"), ("accuracy", "reward/accuracy")):
        config = replace(bare, reward=reward, steps=1, out=str(tmp_path / reward))
        train(config)
        (line,) = metrics_of(Path(config.out))
        assert [name for name in line if name.endswith("/accuracy")] == [key]
        assert 0 <= line[key] <= 1
    # Reports draw it as the curve of accuracy.
    assert "reward/accuracy" in load(tmp_path / "random").columns


class Listener(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_run_without_a_signal_says_so_at_once_and_at_its_end(bare: TrainConfig) -> None:
    heard = Listener()
    result = train(replace(bare, reward="accuracy", steps=11), heard)
    said = [note for note in heard.notes if "had a signal" in note]
    assert [note[:36] for note in said] == [
        "no group of step 1 had a signal: com", "no group of step 10 had a signal: co"
    ]  # fmt: skip
    assert "completions are cut at max_tokens = 8" in said[0]
    assert "; --max-tokens 32. Nothing has been trained" in said[0]
    assert result["nothing_trained"].startswith("no group of step 10 had a signal: completions are")
    assert result["nothing_trained"].endswith("--max-tokens 32")
    assert result == runs.read_object(Path(bare.out) / "result.json")


def test_a_run_that_trains_or_has_no_steps_says_nothing_of_it(bare: TrainConfig) -> None:
    heard = Listener()
    assert train(replace(bare, steps=2), heard)["nothing_trained"] == ""
    assert train(replace(bare, steps=0), heard, overwrite=True)["nothing_trained"] == ""
    assert not [note for note in heard.notes if "had a signal" in note]


@pytest.mark.parametrize(
    ("steps", "counted", "why"),
    [
        (0, {}, ""),
        (5, {"signal_steps": 2, "optimizer_steps": 3, "skipped": 2}, ""),
        (5, {}, "no group of any step had a signal"),
        (5, {"optimizer_steps": 5}, "no group of any step had a signal"),  # under a KL term
        (5, {"signal_steps": 3}, "the update had not begun to train: it takes more --steps"),
        (5, {"optimizer_steps": 2, "skipped": 2},
         "a loss or gradient was not finite: try a smaller learning rate, or fp32"),
    ],
)  # fmt: skip
def test_why_nothing_was_trained(steps: int, counted: dict[str, int], why: str) -> None:
    counters = Counters(rollouts=steps, **counted)
    session: Any = SimpleNamespace(counters=counters, silence="", critic=None)
    assert rollout.untrained(session) == why


def test_the_first_proof_says_why_half_of_an_adapter_stays(bare: TrainConfig) -> None:
    heard = Listener()
    train(replace(bare, update="lora(rank=2)", steps=1), heard)
    (proof,) = [note for note in heard.notes if note.startswith("change proof after the first")]
    assert " (21 have no gradient while what they are multiplied with is 0)" in proof
    train(replace(bare, update="last(1)", steps=1), heard, overwrite=True)
    assert "no gradient" not in heard.notes[-1]


def test_the_first_update_is_on_policy(bare: TrainConfig) -> None:
    train(replace(bare, steps=3))
    for line in metrics_of(Path(bare.out)):
        assert line["policy/ratio_error"] < 1e-5
        assert line["policy/clip_fraction"] == 0.0


def test_several_updates_leave_the_policy_behind(bare: TrainConfig) -> None:
    batch = replace(bare.batch, updates_per_rollout=3)
    train(replace(bare, batch=batch, optimizer=Optimizer(learning_rate=3e-2)))
    lines = metrics_of(Path(bare.out))
    assert max(line["policy/ratio_error"] for line in lines) > 1e-3
    state = runs.read_checkpoint(runs.checkpoints(Path(bare.out))[-1])[1]
    assert state["optimizer_steps"] == 3 * bare.steps


@pytest.mark.parametrize("update", ["full", "last(1)", "lora(rank=2)"])
def test_kl_is_zero_at_first_and_then_not(bare: TrainConfig, update: str) -> None:
    rate = Optimizer(learning_rate=1e-2)
    train(replace(bare, update=update, objective="grpo(kl=0.04)", optimizer=rate))
    kl = [line["policy/kl"] for line in metrics_of(Path(bare.out))]
    assert abs(kl[0]) < 1e-6
    assert min(kl[1:]) > 1e-6


def test_last_leaves_every_other_tensor_bit_identical(bare: TrainConfig) -> None:
    config = replace(bare, update="last(1)", optimizer=Optimizer(weight_decay=0.1))
    base = fingerprints(dict(prepare(config).prepared.model.named_parameters()))
    result = train(config)
    after = fingerprints(dict(reload(Path(bare.out)).prepared.model.named_parameters()))
    moved = {name for name in base if base[name] != after[name]}
    assert moved == {name for name in base if ".layers.2." in name}
    assert "frozen ones are bit-identical" in result["change_proof"]


def spoil(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int]) -> list[int]:
    """Make the loss NaN at the given calls of `backward`; returns the list of calls."""
    calls: list[int] = []
    real = step.backward

    def backward(session: Session, batch: Batch, *rest: Any) -> dict[str, float]:
        calls.append(len(calls))
        sums = real(session, batch, *rest)
        if calls[-1] in bad_calls:
            next(iter(session.optimization.masters.tensors.values())).grad.fill_(float("nan"))
            sums["loss"] = float("nan")
        return sums

    monkeypatch.setattr("modicum.training.loop.backward", backward)
    return calls


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1, 2})
    result = train(replace(bare, steps=5))
    assert result["skipped_steps"] == 2
    session = reload(Path(bare.out))
    assert all(bool(p.isfinite().all()) for p in session.prepared.model.parameters())


def test_steps_that_stay_not_finite_stop_the_run(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(2, 99)))
    bare = replace(bare, sampling=Sampling(max_tokens=12))  # a signal in every step
    with pytest.raises(RunStopped, match="not finite for 3 steps in a row"):
        train(replace(bare, steps=8))
    session = prepare(replace(bare, steps=8))
    assert restore(session, runs.checkpoints(Path(bare.out))[-1]) == 4
    assert all(bool(p.isfinite().all()) for p in session.prepared.model.parameters())


def test_a_stale_sampler_stops_the_run(bare: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rollout.sample_groups

    def stale(session: Session, *which: int) -> list[Group]:
        groups = real(session, *which)
        with torch.no_grad():  # the policy moves between sampling and training
            for parameter in session.prepared.trainable.values():
                parameter.mul_(1.05)
        return groups

    monkeypatch.setattr("modicum.training.rollout.sample_groups", stale)
    with pytest.raises(RunStopped, match="agreement proof"):
        train(bare)


def test_a_frozen_tensor_that_moves_stops_the_run(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = step.optimizer_step

    def leaky(session: Session, *rest: Any) -> float:
        norm = real(session, *rest)
        with torch.no_grad():
            session.prepared.frozen["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-6
        return norm

    monkeypatch.setattr("modicum.training.loop.optimizer_step", leaky)
    with pytest.raises(RunStopped, match=r"layers\.0\.mlp\.up_proj\.weight should be frozen"):
        train(replace(bare, update="last(1)"))


def test_bf16_compute_has_fp32_masters(bare: TrainConfig) -> None:
    from modicum.config import Compute

    config = replace(bare, compute=Compute(dtype="bf16"), update="last(1)")
    train(config)
    session = reload(Path(bare.out))
    assert all(p.dtype == torch.bfloat16 for p in session.prepared.model.parameters())
    for name, master in session.optimization.masters.tensors.items():
        assert master.dtype == torch.float32
        distance = (session.prepared.trainable[name].float() - master).abs()
        assert (distance <= 2.0**-7 * master.abs()).all(), "one of the two numbers beside it"
    assert any(
        not torch.equal(m, m.bfloat16().float())
        for m in session.optimization.masters.tensors.values()
    )


def test_the_run_folder_holds_what_it_should(quick: TrainConfig) -> None:
    train(quick)
    folder = Path(quick.out)
    assert json.loads((folder / "result.json").read_text())["steps"] == quick.steps
    assert len(metrics_of(folder)) == quick.steps
    names = [e["name"] for e in runs.read_lines(folder / "evaluations.jsonl")]
    assert names == ["base", "trained"]
    with pytest.raises(UserError, match="holds a finished run"):
        train(quick)
    train(quick, overwrite=True)


def test_linear_schedule_and_warm_up(bare: TrainConfig) -> None:
    settings = Optimizer(learning_rate=1e-3, schedule="linear", warmup_steps=2)
    sampling = Sampling(max_tokens=12)  # a signal in every step
    train(replace(bare, steps=6, optimizer=settings, sampling=sampling))
    rates = [line["policy/learning_rate"] for line in metrics_of(Path(bare.out))]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def rates_of(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[float]:
    """The learning rate of every update of a run that was taken."""
    found: list[float] = []
    taken = Optimization.step

    def step(self: Optimization, loss: float, rate: float, has_signal: bool = True) -> float:
        found.append(rate)
        return taken(self, loss, rate, has_signal)

    with monkeypatch.context() as patch:
        patch.setattr(Optimization, "step", step)
        train(config, **how)
    return found


def test_the_rate_falls_with_every_update(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within a rollout."""
    settings = Optimizer(learning_rate=1.0, schedule="linear")
    batch = replace(bare.batch, updates_per_rollout=2)
    config = replace(bare, steps=3, batch=batch, optimizer=settings, update="last(1)")
    assert rates_of(config, monkeypatch) == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    slow = replace(config, optimizer=replace(settings, warmup_steps=3))
    found = rates_of(slow, monkeypatch, overwrite=True)
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize("warmup, wanted", [(0, [0.8, 0.6, 0.2]), (2, [1, 1, 1 / 3])])
def test_rollouts_without_a_signal_count_in_the_rate(
    warmup: int,
    wanted: list[float],
    bare: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Five rollouts, the first and the fourth without one, also in a run that was cut between.

    The last has 1/5 of the rate, or 1/3 after a warm-up of two.
    """
    settings = Optimizer(learning_rate=1.0, schedule="linear", warmup_steps=warmup)
    records = replace(bare.records, checkpoint_every=1)
    config = replace(bare, steps=5, optimizer=settings, update="last(1)", records=records)
    number, stops = 0, False

    def sample_groups(session: Session, step: int, *rest: int) -> list[Group]:
        nonlocal number
        number = step
        if stops and step == 2:
            raise InterruptedError
        return sampler(session, step, *rest)

    def score(*args: Any) -> Any:
        scores, totals = scorer(*args)
        return scores, totals * 0 if number in (0, 3) else totals

    sampler, scorer = rollout.sample_groups, rollout.score
    monkeypatch.setattr(rollout, "sample_groups", sample_groups)
    monkeypatch.setattr(rollout, "score", score)
    assert rates_of(config, monkeypatch) == pytest.approx(wanted)
    stops, cut = True, replace(config, out=str(tmp_path / "cut"))
    with pytest.raises(InterruptedError):
        train(cut)
    stops = False
    assert rates_of(cut, monkeypatch, resume=True) == pytest.approx(wanted[1:])
