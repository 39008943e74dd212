"""Objectives on a model: what may be dropped, split and reordered, and which are one method."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_model
from modicum import runs
from modicum.config import Steps
from modicum.engine import logprobs
from modicum.objectives import OBJECTIVES, method, parse
from modicum.training import hearing, step
from modicum.training.loop import train
from modicum.training.session import Session
from modicum.types import Batch, Completion, Group, Problem, UserError
from schedules import session_of

NAN = float("nan")
# A group with a signal, one without, one with a completion that has no verdict; and lengths.
REWARDS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, NAN]])
LENGTHS = ((3, 5, 1), (2, 4, 2), (6, 1, 3))
ROLLOUTS: dict[float, list[Group]] = {}
# Every member without KL, and options on one of each kind of advantage.
PLAIN = [f"{name}(kl=0)" if cls.kl else name for name, cls in OBJECTIVES.items()]
OPTIONS = [
    "grpo(kl=0.05)",
    "gspo(kl=0.05, kl_form='k3_corrected')",
    "ipo(kl=0.05, kl_form='k2')",
    "dapo(kl=0.05, kl_form='k1_reward')",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "gspo(entropy=0.01)",
    "maxrl(entropy_share=0.4)",
    "reinforce_pp(entropy_share=0.4)",
    "rloo(dual_clip=1.01)",
]
ALL = [*PLAIN, *OPTIONS]


@pytest.fixture(scope="module")
def made(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session whose policy has moved away from its reference."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(folders["llama"], folder, dirs_exist_ok=True)
    random_model("llama", layers=1).save_pretrained(folder)
    made = session_of(folder, "full", kl=1)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.prepared.trainable.values():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    made.policy.follow(made.prepared)
    return made


def rollout(made: Session, moved: float = 0.0) -> list[Group]:
    """Groups of completions as long as LENGTHS; their log-probs are off the policy's by `moved`."""
    if moved in ROLLOUTS:
        return ROLLOUTS[moved]
    draw = torch.Generator().manual_seed(1)
    groups = []
    for number, lengths in enumerate(LENGTHS):
        written = [tuple(torch.randint(2, 282, (n,), generator=draw).tolist()) for n in lengths]
        bare = [Completion(tokens, (0.0,) * len(tokens), "", True) for tokens in written]
        group = Group(Problem(str(number), "", ""), (40, 41 + number), tuple(bare))
        rows = [step.Row(group.prompt, c.tokens, c.logprobs, 0.0) for c in bare]
        with torch.no_grad():
            now_N, _ = logprobs.logprobs(made.policy.scorer, rows, made.config.sampling)
        old_N = now_N + moved * torch.randn(now_N.shape, generator=draw)
        old = [tuple(part.tolist()) for part in old_N.split(list(lengths))]
        told = zip(bare, old, strict=True)
        groups.append(replace(group, completions=tuple(replace(c, logprobs=o) for c, o in told)))
    return ROLLOUTS.setdefault(moved, groups)


def batch_of(made: Session, text: str, moved: float = 0.0) -> Batch:
    made.objective = parse(text)
    return hearing.batch_of(made, rollout(made, moved), REWARDS)


def gradient(made: Session, batch: Batch, micro_batch: int = 99) -> Tensor:
    """The gradient of the session's objective on a batch, laid end to end."""
    made.resize(micro_batch=micro_batch)
    made.optimization.clear()
    step.backward(made, batch, {})
    found = made.optimization.gradients()
    return torch.cat([found[name].flatten() for name in sorted(found)])


def apart(one: Tensor, other: Tensor) -> float:
    """The difference of two gradients, relative to the first."""
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("text", ALL)
def test_rows_without_a_signal_are_dropped_exactly_where_they_change_nothing(
    made: Session, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all rows and without those of equal rewards or no verdict: droppable or not."""
    made.objective = goal = parse(text)
    droppable = goal.droppable
    monkeypatch.setattr(type(goal), "droppable", False)
    whole = batch_of(made, text, moved=0.1)
    assert len(whole.rows) == 9 and (whole.num_rows, whole.num_tokens) == (9, 27)
    unknown = rollout(made, 0.1)[2].completions[2].tokens
    told = [row for row in whole.rows if row.group != 1 and row.tokens != unknown]
    less = replace(whole, rows=tuple(told))
    assert len(less.rows) == 5
    found = apart(gradient(made, whole), gradient(made, less))
    assert (found < 1e-6) == droppable, found
    monkeypatch.undo()
    kept = batch_of(made, text, moved=0.1)
    assert len(kept.rows) == (5 if droppable else 9)


@pytest.mark.parametrize("text", ALL)
def test_micro_batches_chunks_and_the_order_of_rows_change_nothing(
    made: Session, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(made, text, moved=0.1)
    whole = gradient(made, batch)
    assert whole.norm() > 1e-4
    for size in (1, 2, 4):
        assert apart(whole, gradient(made, batch, size)) < 1e-6
    backwards = replace(batch, rows=batch.rows[::-1])
    assert apart(whole, gradient(made, backwards, 2)) < 1e-6
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * 282 * 4)
    assert apart(whole, gradient(made, batch)) < 1e-6


CLASSES: dict[str, list[str]] = {
    "grpo": ["grpo", "gspo", "grpo(clip=0.1)", "grpo(dual_clip=3)"],
    "dapo": ["dapo", "cispo", "sapo", "cispo(cap=2)"],
    "ipo": ["ipo", "dppo", "ipo(eps=0.1)"],
    "k2": ["grpo(kl=0.1, kl_form='k2')", "gspo(kl=0.1, kl_form='k3_corrected')"],
    "dr_grpo": ["dr_grpo"],
    "rloo": ["rloo"],
    "maxrl": ["maxrl"],
    "rf": ["reinforce_pp(kl=0)"],
    "rfb": ["reinforce_pp_baseline(kl=0)"],
    "k3": ["grpo(kl=0.1)"],
    "entropy": ["dapo(entropy=0.1)", "sapo(entropy=0.1)"],
    "share": ["dapo(entropy_share=0.4)", "cispo(entropy_share=0.4)"],
}


def test_objectives_of_one_class_have_one_gradient_and_others_have_not(made: Session) -> None:
    """2.1.9: with ratios of 1, for every pair, to 1e-6; the program says the same."""
    texts = [(name, text) for name, members in CLASSES.items() for text in members]
    found = {text: gradient(made, batch_of(made, text)) for _, text in texts}
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        same = apart(found[a], found[b]) < 1e-6
        assert same == (one == other), (a, b)
        assert (method(parse(a), 1) == method(parse(b), 1)) == same, (a, b)
        assert method(parse(a), 2) != method(parse(b), 2)


# Runs ------------------------------------------------------------------------------------


def trained(config: Any) -> list[dict[str, float]]:
    train(config)
    return runs.read_lines(Path(config.out) / "metrics.jsonl")


def test_a_run_that_hears_the_model_before_it_learns(bare: Any, tmp_path: Path) -> None:
    """A KL in the reward, a share by entropy and a bonus: any micro-batch gives the same run."""
    text = "dapo(kl=0.5, kl_form='k1_reward', entropy=0.01, entropy_share=0.5)"
    config = replace(bare, objective=text, steps=2)
    one, other = (
        trained(
            replace(
                config, out=str(tmp_path / str(size)), batch=replace(bare.batch, micro_batch=size)
            )
        )
        for size in (64, 3)
    )
    # The policy is its reference in the first step: k1 is 0, and not of one sign later.
    assert abs(one[0]["policy/kl"]) < 1e-5 < abs(one[1]["policy/kl"])
    plain = trained(replace(config, objective="dapo", out=str(tmp_path / "plain")))
    assert plain[0]["policy/grad_norm"] != pytest.approx(one[0]["policy/grad_norm"], rel=1e-3)
    assert one[0]["flops/training"] > plain[0]["flops/training"]
    for a, b in zip(one, other, strict=True):
        same = [k for k in a if not k.startswith(("time/", "memory/", "flops/"))]
        assert [a[k] for k in same] == pytest.approx([b[k] for k in same], rel=1e-3, abs=1e-5)


def test_one_completion_a_problem_is_enough_where_none_are_compared(bare: Any) -> None:
    config = replace(bare, steps=2, batch=Steps(prompts_per_step=12, group_size=1))
    with pytest.raises(
        UserError, match=r"group_size must be at least 2 .*reinforce_pp and ppo take 1"
    ):
        train(replace(config, objective="grpo"))
    lines = trained(replace(config, objective="reinforce_pp"))
    assert all(line["policy/grad_norm"] > 0 for line in lines)


def test_only_the_tokens_of_highest_entropy_keep_their_advantage(
    made: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten tokens that have one; 3 of them, in batches of any size, and none where none has."""
    batch = batch_of(made, "grpo")
    rows = batch.rows[:4]
    lengths = [len(row.tokens) for row in rows]
    entropy = torch.arange(float(sum(lengths)))
    monkeypatch.setattr(hearing, "_heard", lambda *_: [p.tolist() for p in entropy.split(lengths)])
    made.objective = parse("grpo(entropy_share=0.3)")
    found = hearing.narrow(made, replace(batch, rows=rows)).rows
    kept = [a != 0 for row in found for a in row.advantages]
    paid = [a != 0 for row in rows for a in row.advantages]
    count = -(-3 * sum(paid) // 10)
    assert sum(kept) == count > 0 and all(kept[-count:]) and all(paid[-count:])
    poor = replace(batch, rows=tuple(replace(row, advantage=0.0) for row in rows))
    assert not any(a for row in hearing.narrow(made, poor).rows for a in row.advantages)
