"""Runs on a pretend accelerator: nothing lies on the wrong device, and the host seldom waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import metrics_of
from modicum import cli, runs
from modicum.config import Compute, Held, Optimizer, Records, TrainConfig
from modicum.engine import logprobs, split
from modicum.models import attention, precision, rounding
from modicum.objectives.base import Objective
from modicum.training.loop import Observer, train
from modicum.updates import UPDATES, stepper
from modicum.updates import members as rules
from pretend import Record, pretend

MICRO_BATCHES, STEPS = 2, 2  # of 4 rows each, with a prompt of its own
EXAMPLES = [cls.examples[0] for cls in UPDATES.values()]
FEW = ("full", "last(1)", "lora(rank=4)", "sparse(keep=0.05)", "galore(rank=4, every=2)")


class Cut(Observer):
    """Ends a run after its first step, as a crash would, and its checkpoint."""

    def evaluated(self, name: str, found: Any) -> None:
        if name == "step 1":
            raise MemoryError


def on_device(config: TrainConfig, **settings: Any) -> TrainConfig:
    """Two steps of two micro-batches with a KL term, an evaluation after each, and anatomy."""
    compute = replace(Compute(device="pretend"), **settings)
    return replace(
        config,
        **{"objective": "grpo(kl=0.04)", "steps": STEPS, "compute": compute},
        batch=replace(config.batch, micro_batch=4, rollout_batch=8),
        optimizer=Optimizer(learning_rate=1e-3),
        evaluation=Held(eval_problems=2, eval_samples=2, eval_every=1),
        records=Records(checkpoint_every=1, samples_every=2),
    )


def cut_and_resumed(config: TrainConfig) -> Record:
    """What the device was asked for in a run that was cut after its first step and went on."""
    with pretend() as record:
        with contextlib.suppress(MemoryError):
            train(config, Cut())
        result = train(config, resume=True)
    assert "trainable tensors changed" in result["change_proof"]
    assert result["anatomy"]
    assert len(metrics_of(Path(config.out))) == STEPS
    return record


@pytest.mark.parametrize("update", FEW)
def test_a_run_stays_on_its_device(quick: TrainConfig, update: str) -> None:
    assert cut_and_resumed(replace(on_device(quick), update=update)).count


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["split", "library"])
@pytest.mark.parametrize("update", EXAMPLES)
def test_every_member_stays_on_its_device(quick: TrainConfig, update: str, engine: Any) -> None:
    assert cut_and_resumed(replace(on_device(quick, engine=engine), update=update)).count


@pytest.mark.parametrize(
    "objective", ["ppo(warmup=0)", "grpo(kl=0.04, kl_form='k1_reward')", "dapo(entropy=0.01)"]
)
def test_an_objective_stays_on_its_device(quick: TrainConfig, objective: str) -> None:
    config = replace(on_device(quick), update="last(1)", objective=objective)
    assert cut_and_resumed(config).count


def test_a_learned_reward_stays_on_its_device(
    quick: TrainConfig, folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"<a>{n}", "rejected": f"<b>{n}"} for n in range(160)]
    (tmp_path / "rows.jsonl").write_text(runs.to_lines(rows))
    options = ["--pairs", tmp_path / "rows.jsonl", "--model", folders["qwen2"]]
    options += ["--out", tmp_path / "reward", "--rank", 4, "--learning-rate", "1e-2", "--json"]
    with contextlib.redirect_stdout(None):
        assert cli.run(["reward-model", *map(str, options)]) == 0
    reward = f"learned({str(tmp_path / 'reward')!r})"
    assert cut_and_resumed(replace(on_device(quick), update="last(1)", reward=reward)).count


# How often the host waits -------------------------------------------------------------------


def excess(record: Record, micro_batches: int, steps: int) -> dict[str, int]:
    """Where the host waited more often than it may in so many micro-batches and steps."""
    most = {
        "forward_backward": 3 * micro_batches,
        "read": steps,
        "norms": steps,
        **dict.fromkeys(("collect", "shrink", "_use_grad", "after"), 0),
    }
    found = {name: record.within(name).total() for name in most}
    return {name: count for name, count in found.items() if count > most[name]}


def short(config: TrainConfig, update: str, **compute: Any) -> TrainConfig:
    """One step of two micro-batches, and nothing else."""
    made = on_device(config, dtype="bf16", **compute)
    records = replace(made.records, anatomy=False)
    return replace(made, update=update, steps=1, evaluation=Held(eval_problems=0), records=records)


@pytest.mark.parametrize("update", ["full", "last(1)", "lora(rank=4)", "sparse(keep=0.05)"])
def test_the_host_seldom_waits(quick: TrainConfig, update: str) -> None:
    """Decoding has a budget of its own in tests/test_rollout.py, or will have one."""
    with pretend() as record:
        train(replace(short(quick, update), steps=STEPS))
    assert excess(record, MICRO_BATCHES * STEPS, STEPS) == {}
    assert record.up_within("forward_backward").total() <= 4 * MICRO_BATCHES * STEPS
    assert record.within("forward_backward").total() == 0, record.within("forward_backward")
    assert record.count > 1000


# Planted faults -----------------------------------------------------------------------------


def wrong_tokens(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(logprobs, "up", lambda device, *tensors: tensors)


def wrong_places(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention, "up", lambda device, *tensors: tensors)


def wrong_trunk(patch: pytest.MonkeyPatch) -> None:
    real = split.Trunk
    patch.setattr(split, "Trunk", lambda prompt, rest: real(prompt.cpu(), rest.cpu()))


def wrong_reference(patch: pytest.MonkeyPatch) -> None:
    real = logprobs.reference_logprobs
    patch.setattr(logprobs, "reference_logprobs", lambda *given: real(*given).cpu())


def wrong_noise(patch: pytest.MonkeyPatch) -> None:
    real = rounding.noise_from
    patch.setattr(rounding, "noise_from", lambda *given: real(*given[:3], torch.device("cpu")))


def wrong_factor(patch: pytest.MonkeyPatch) -> None:
    def shrink(gradients: dict[str, Tensor], norm: float, most: float) -> None:
        for gradient in gradients.values():
            gradient.mul_(torch.ones(1))

    patch.setattr(stepper, "shrink", shrink)


@pytest.mark.parametrize(
    ("fault", "place"),
    [
        (wrong_tokens, "engine/sampling.py"),
        (wrong_places, "models/decoder.py"),
        (wrong_trunk, "models/decoder.py"),
        (wrong_reference, "objectives/parts.py"),
        (wrong_noise, "models/rounding.py"),
        (wrong_factor, "updates/stepper.py"),
    ],
)
def test_a_tensor_on_the_wrong_device_is_found(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None], place: str
) -> None:
    fault(monkeypatch)
    with pretend(), pytest.raises(RuntimeError, match=f"among tensors of pretend, at {place}:"):
        train(short(quick, "last(1)"))


def wait_in_the_loss(patch: pytest.MonkeyPatch) -> None:
    real = Objective.loss

    def loss(self: Objective, policy_N: Tensor, *given: Any) -> Any:
        assert all(float(value) < 0 for value in policy_N[:4].detach())
        return real(self, policy_N, *given)

    patch.setattr(Objective, "loss", loss)


def wait_in_the_forward(patch: pytest.MonkeyPatch) -> None:
    real = split.SplitEngine.hidden

    def hidden(self: Any, *given: Any) -> Tensor:
        found = real(self, *given)
        for _ in range(4):
            found = found[found[:, 0] == found[:, 0]]
        return found

    patch.setattr(split.SplitEngine, "hidden", hidden)


def wait_in_the_clip(patch: pytest.MonkeyPatch) -> None:
    real = rules.shrink

    def shrink(gradients: dict[str, Tensor], norm: float, most: float) -> None:
        if bool(next(iter(gradients.values())).isfinite().all()):
            real(gradients, norm, most)

    patch.setattr(stepper, "shrink", shrink)


def wait_in_the_optimizer(patch: pytest.MonkeyPatch) -> None:
    from torch.optim import adam

    real: Any = adam._fused_adam

    def fused(params: list[Tensor], *given: Any, **named: Any) -> None:
        params[0].sum().item()
        real(params, *given, **named)

    patch.setattr(adam, "_fused_adam", fused)


def wait_in_the_masters(patch: pytest.MonkeyPatch) -> None:
    real = precision.Master.collect

    def collect(self: precision.Master) -> None:
        if self.parameter.grad is not None and self.parameter.grad.any():
            real(self)

    patch.setattr(precision.Master, "collect", collect)


def wait_in_the_rounding(patch: pytest.MonkeyPatch) -> None:
    real = precision.rounded

    def rounded(values: Tensor, *rest: Any) -> Tensor:
        return real(values, *rest) if bool(values.isfinite().all()) else values

    patch.setattr(precision, "rounded", rounded)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (wait_in_the_loss, "forward_backward"),
        (wait_in_the_forward, "forward_backward"),
        (wait_in_the_clip, "shrink"),
        (wait_in_the_optimizer, "_use_grad"),
        (wait_in_the_masters, "collect"),
        (wait_in_the_rounding, "after"),
    ],
)
def test_a_hidden_wait_is_found(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None], name: str
) -> None:
    fault(monkeypatch)
    with pretend() as record:
        train(short(quick, "last(1)"))
    assert list(excess(record, MICRO_BATCHES, 1)) == [name]


def test_what_a_gpu_would_not_do() -> None:
    with pretend() as record:
        here, there = torch.ones(3), torch.ones(3, device="pretend")
        number = torch.tensor(2.0)
        for bad in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: torch.stack([number, there.sum()]),
            lambda: here[there.long()],
            lambda: torch.mm(torch.ones(3, 3), there[:, None]),
        ):
            with pytest.raises(RuntimeError, match=r"at test_pretend.py:\d+"):
                bad()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert not record.syncs
        # A number may be anywhere, a view is a view, and what the host asks for it waits for.
        assert (there * number).tolist() == [2.0] * 3
        there.view(3, 1)[1] += 4
        assert there.cpu().tolist() == [1.0, 5.0, 1.0] and bool(there.any())
        assert there.sum().item() == float(there.sum()) == 7.0
        assert len(there[there > 2]) == len(there.nonzero()) - 2 == 1
    wanted = [
        "tolist",
        "copy to the CPU",
        *["_local_scalar_dense"] * 3,
        "index by a mask",
        "nonzero",
    ]
    assert [sync.what for sync in record.syncs if "copy up" not in sync.what] == wanted
    assert all(sync.where.startswith("test_pretend.py:") for sync in record.syncs)
