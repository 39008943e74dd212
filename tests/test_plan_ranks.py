"""Plans of runs of several processes: what each holds and does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modicum.config import Compute, Held, Sampling, Steps, TrainConfig
from modicum.plan import hardware, overall
from modicum.plan.overall import RunPlan
from modicum.types import UserError

TRAINED = 160_256 + 128  # numbers of last(1, norm=True) of the tiny base
CONFIG = TrainConfig(
    update="last(1, norm=True)",
    sampling=Sampling(max_tokens=8),
    batch=Steps(prompts_per_step=6, group_size=4, micro_batch=4, rollout_batch=64),
    evaluation=Held(eval_problems=8),
    compute=Compute(checkpointing=False),
)


def plan(parallel: str, machine: str = "2x24GB", **rest: object) -> RunPlan:
    compute = replace(CONFIG.compute, parallel=parallel)
    config = replace(CONFIG, compute=compute, **rest)  # type: ignore[arg-type]
    return overall.make(config, hardware.parse(machine, "cuda", "fp32"), prompt=12)


def part(of: RunPlan, name: str) -> int:
    return of.memory.largest[name]


def test_two_processes_share_the_problems() -> None:
    alone, shared = plan("none"), plan("ddp")
    assert (alone.ranks, shared.ranks) == (1, 2)
    assert shared.flops.total == pytest.approx(alone.flops.total / 2)
    assert part(shared, "optimizer") == part(alone, "optimizer") == 8 * TRAINED
    assert part(shared, "trunk") < part(alone, "trunk")
    assert "2 processes share the problems" in " ".join(shared.assumptions)
    assert "share its steps (--parallel ddp)" in " ".join(alone.assumptions)
    assert "each of 2 processes" in shared.text()


def test_the_largest_share_is_planned() -> None:
    """Of 6 problems 4 processes have 2, 2, 1 and 1."""
    assert plan("ddp", "4x24GB").flops.total == pytest.approx(plan("none").flops.total / 3)


def test_masters_and_state_lie_in_pieces() -> None:
    """In fp32 masters are copies then; the gradient is whole."""
    found = plan("zero")
    assert part(found, "masters") == pytest.approx(4 * TRAINED / 2, abs=64)
    assert part(found, "optimizer") == pytest.approx(8 * TRAINED / 2, abs=64)
    assert part(found, "gradients") == part(plan("ddp"), "gradients") == 4 * TRAINED


def test_layers_lie_in_pieces_in_training() -> None:
    """The matrices of six layers are 159,744 numbers each; one layer is whole, or all are."""
    shared, zero = plan("fsdp", update="full"), plan("zero", update="full")
    phases = {phase.name: phase.parts for phase in shared.memory.phases}
    assert phases["sampling"]["weights"] == part(zero, "weights") == 3_991_168
    assert phases["training"]["weights"] == 3_991_168 - 4 * 159_744 * 6 // 2 + 4 * 159_744
    assert part(zero, "gradients") == 4 * 997_760
    assert part(shared, "gradients") == 4 * (997_760 - 159_744 * 6 // 2)


def test_one_device_has_one_process() -> None:
    assert plan("zero", "24GB").ranks == 1


@pytest.mark.parametrize("update", ["galore(rank=4)", "sparse(keep=0.1)", "lisa(state='cpu')"])
def test_what_a_run_refuses_has_no_plan(update: str) -> None:
    with pytest.raises(UserError, match="masters in pieces"):
        plan("zero", update=update)


def test_adapters_have_no_plan_with_layers_in_pieces() -> None:
    with pytest.raises(UserError, match="fsdp divides layers whose own matrices train"):
        plan("fsdp", update="lora(rank=2)")
