"""Corrections of another sampler's log-probs: the weights, what they do in a loss, and runs under them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import random_model
from helpers import engine_of, metrics_of, tensors_of
from modicum import machine
from modicum.config import Compute, Sampling, TrainConfig
from modicum.engine import agreement
from modicum.engine.logprobs import forward_backward, logprobs
from modicum.engine.samplers import SAMPLERS
from modicum.objectives import OBJECTIVES, Tokens, corrections
from modicum.objectives import parse as objective
from modicum.objectives.base import Counts
from modicum.objectives.corrections import CORRECTIONS, measured, parse
from modicum.rewards import StepExtras
from modicum.training import probe, step
from modicum.training.hearing import batch_of, corrected
from modicum.training.loop import Observer, train
from modicum.training.rollout import Rollout, draw
from modicum.training.session import Session, prepare
from modicum.types import Completion, Group, Problem, Row, RunStopped, UserError
from off_sampler import Off

D = torch.tensor([0.1, -1.5, 0.8, -10.0, 0.3], dtype=torch.double)
RATIOS = (1.10517, 0.22313, 2.22554, 0.00005, 1.34986)
NEAR = torch.tensor([0.0005, -0.0002], dtype=torch.double)
# The weights of D, and of two tokens that are nearly alike; None: no part in the loss.
EXAMPLES: dict[str, tuple[tuple[float | None, ...], tuple[float | None, ...]]] = {
    "none": ((1.0,) * 5, (1.0, 1.0)),
    "token": ((1.10517, 0.22313, 2.0, 0.00005, 1.34986), (1.0005, 0.9998)),
    "token(cap=1.2)": ((1.10517, 0.22313, 1.2, 0.00005, 1.2), (1.0005, 0.9998)),
    "mask": ((1.10517, None, None, None, 1.34986), (1.0005, 0.9998)),
    "mask(divides=sampled)": ((1.10517, 0.0, 0.0, 0.0, 1.34986), (1.0005, 0.9998)),
    "mask(low=0.2, high=3)": ((1.10517, 0.22313, 2.22554, None, 1.34986), (1.0005, 0.9998)),
    # exp(-10.3) = 3.36e-5 and exp(-2.06) = .12745; then exp(.0003) and exp(.00015).
    "sequence": ((None,) * 5, (1.0003, 1.0003)),
    "sequence(divides=sampled)": ((0.0,) * 5, (1.0003, 1.0003)),
    "geometric": ((None,) * 5, (1.0, 1.0)),
    "geometric(low=0.1)": ((1.0,) * 5, (1.0, 1.0)),
    "geometric(high=1.0001)": ((None,) * 5, (None, None)),
}


def same(found: tuple[float | None, ...], wanted: tuple[float | None, ...]) -> bool:
    pairs = list(zip(found, wanted, strict=True))
    alike = all((a is None) == (b is None) for a, b in pairs)
    return alike and all(a == pytest.approx(b, abs=1e-5) for a, b in pairs if a is not None)


# The kind --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", EXAMPLES)
def test_weights_are_those_worked_out_by_hand(text: str) -> None:
    correction = parse(text, in_process=False)
    for d_T, wanted in zip((D, NEAR), EXAMPLES[text], strict=True):
        assert same(correction.weights(d_T), wanted)
    assert {objective_name(name) for name in EXAMPLES} == set(CORRECTIONS)


def objective_name(text: str) -> str:
    return text.partition("(")[0]


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_member_comes_back_from_its_expression(text: str) -> None:
    made = parse(text, in_process=False)
    assert parse(str(made), in_process=False) == made
    assert made.form == ("bypass" if text == "none" else "decoupled")
    # Where both agree nothing is weighed or rejected; what is no number is left to the step.
    assert made.weights(torch.zeros(3, dtype=torch.double)) == (1.0, 1.0, 1.0)
    (weight,) = made.weights(torch.tensor([math.nan]))
    assert weight == 1 if text == "none" or "geometric" in text else math.isnan(weight or 0)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_the_sampler_of_this_process_is_not_corrected(name: str) -> None:
    if name == "none":
        assert parse(name, in_process=True) == parse("auto", in_process=True) == parse(name, False)
        return
    with pytest.raises(UserError, match="agrees with the trainer to 1e-7") as caught:
        parse(name, in_process=True)
    assert len(str(caught.value).splitlines()) == 1


def test_auto_is_token_for_another_sampler() -> None:
    assert parse("auto", in_process=False) == corrections.Token(cap=2.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tokens", "unknown correction 'tokens'; did you mean 'token'"),
        ("token(cap=0.5)", "cap must be at least 1"),
        ("mask(low=0)", "low must be above 0"),
        ("geometric(high=0.9)", "high must be at least 1"),
        ("mask(divides=drawn)", "divides is 'drawn'"),
        ("token(divides=kept)", "no argument 'divides'"),
    ],
)
def test_what_it_cannot_be_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse(text, in_process=False)
    assert len(str(caught.value).splitlines()) == 1


def told(text: str) -> dict[str, float]:
    weights = parse(text, in_process=False).weights(D)
    return {k.removeprefix("sampler/"): v for k, v in measured(D, [weights]).items()}


def test_metrics_are_those_worked_out_by_hand() -> None:
    found = told("token")
    assert found["mismatch_mean"] == pytest.approx(2.54)
    assert found["mismatch_max"] == 10
    # (.0052 + .7231 + .4255 + 9.0000 + .0499) / 5
    assert found["k3"] == pytest.approx(2.04074, abs=1e-4)
    assert found["weight_mean"] == pytest.approx(0.9356, abs=1e-4)
    assert found["rejected_tokens"] == found["rejected_rows"] == 0
    assert found["ess"] == pytest.approx(0.61708, abs=1e-4)  # 4.67821^2 / (5 x 7.09331)
    kept, sampled = told("mask"), told("mask(divides=sampled)")
    assert kept["weight_mean"] == pytest.approx(1.2275, abs=1e-4)
    assert sampled["weight_mean"] == pytest.approx(0.4910, abs=1e-4)
    for of in (kept, sampled):
        assert (of["rejected_tokens"], of["rejected_rows"]) == (0.6, 0)
        assert of["ess"] == pytest.approx(0.39606, abs=1e-4)  # 2.45503^2 / (5 x 3.04353)
    gone = told("sequence")
    assert (gone["weight_mean"], gone["ess"], gone["rejected_rows"]) == (0, 0, 1)


# In a loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_weight_may_be_multiplied_into_the_advantage(name: str) -> None:
    """For every surrogate f(w A) = w f(A), beyond its clips as well."""
    goal, draws = objective(name), torch.Generator().manual_seed(0)
    policy_N, old_N, advantages_N = torch.randn(3, 64, generator=draws).double()
    old_N, policy_N = old_N - 2, policy_N - 2
    weights_N = torch.rand(64, generator=draws).double() * 3 * (torch.arange(64) % 4 > 0)
    row_N = torch.arange(64) // 8

    def found(advantage_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = policy_N.clone().requires_grad_()
        tokens = Tokens(old_N, advantage_N, None, torch.ones(64), row_N)
        ratio_N = goal.log_ratios(leaf, tokens).exp()
        surrogate_N, _ = goal.surrogate(ratio_N, leaf, tokens)
        (gradient_N,) = torch.autograd.grad(surrogate_N.sum(), leaf)
        return surrogate_N.detach(), gradient_N

    (plain_N, gradient_N), (weighed_N, other_N) = (
        found(advantages_N),
        found(advantages_N * weights_N),
    )
    torch.testing.assert_close(weighed_N, plain_N * weights_N)
    if not goal.whole_rows:
        torch.testing.assert_close(other_N, gradient_N * weights_N)


def test_gspo_takes_the_mean_weight_of_a_completion() -> None:
    """Its ratio stays that of all tokens, exp(.01) here, and is not clipped for A = -1."""
    policy_N = torch.tensor([0.01, -0.02, 0.04], requires_grad=True)
    advantages_N = torch.tensor([-1.0, -0.5, 0.0])  # weights 1, .5 and 0
    tokens = Tokens(
        torch.zeros(3), advantages_N, None, torch.full((3,), 1 / 3), torch.zeros(3).long()
    )
    loss, _ = objective("gspo").loss(policy_N, tokens)
    (slope_N,) = torch.autograd.grad(loss, policy_N)
    assert slope_N.tolist() == pytest.approx([1.01005 / 3 * 0.5] * 3, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("grpo", -3.5),  # (1 + (2 + 10) / 2) / 2
        ("dapo", -13 / 3),
        ("dr_grpo", -13 / 16),  # of rows of 8 tokens at most
        ("grpo(kl=0.5)", -3.5 + 0.5 * 0.148721),  # e^.5 - 1.5 of every token that counts
    ],
)
def test_a_token_without_a_part_is_in_no_term_and_no_denominator(text: str, wanted: float) -> None:
    model = random_model("qwen2")
    scorer, sampling = engine_of(model), Sampling(max_tokens=8)
    bare = [Row((40, 41), (50, 51, 52), (), 0.0), Row((40, 41), (60, 61), (), 0.0)]
    with torch.no_grad():
        old = logprobs(scorer, bare, sampling)[0].tolist()
    paid = [((1.0, 5.0, 3.0), (True, False, False)), ((2.0, 10.0), ())]
    references = (old[0] + 0.5, old[1] + 4, old[2] - 4), (old[3] + 0.5, old[4] + 0.5)
    rows = [
        replace(row, logprobs=tuple(said), advantage=a, part=part, reference=r)
        for row, said, (a, part), r in zip(bare, (old[:3], old[3:]), paid, references, strict=True)
    ]
    sums: dict[str, Any] = {}
    policy: Any = type("Only", (), {"scorer": scorer})
    forward_backward(policy, Any, objective(text), rows, Counts(2, 3, 8), sampling, sums)
    assert float(sums["loss"]) == pytest.approx(wanted, abs=1e-4)


def group(*weights: tuple[float | None, ...]) -> Group:
    """Completions of one problem with such weights; the sampler said -2 where the trainer has -1."""
    made = [
        Completion((5,) * len(w), (-1.0,) * len(w), "", True, sampled=(-2.0,) * len(w), weights=w)
        for w in weights
    ]
    return Group(Problem("p", "q", "a"), (1,), tuple(made))


def test_what_is_rejected_leaves_the_denominators() -> None:
    groups = [group((0.5, None, 2.0), (None, None)), group((1.0,), (0.0, 0.0))]
    rewards_PG = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    batch = step.make_batch(objective("dr_grpo"), groups, rewards_PG)
    assert (batch.num_rows, batch.num_tokens) == (3, 5)
    assert [row.advantages for row in batch.rows] == [(0.5,), (0.25, 0.0, 1.0)]
    assert [row.part for row in batch.rows] == [(True,), (True, False, True)]
    assert {row.sampled for row in batch.rows} == {(-2.0,), (-2.0,) * 3}
    under_kl = step.make_batch(objective("dr_grpo(kl=0.1)"), groups, rewards_PG)
    assert len(under_kl.rows) == 3, "what was sampled and has weight 0 still has a KL"


# In a run --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler that is off, and a proof that lets it."""
    monkeypatch.setitem(SAMPLERS, "off", Off)
    monkeypatch.setattr(agreement, "EXACT", 10.0)


def under(config: TrainConfig, correction: str, by: float = 0.5, **batch: Any) -> TrainConfig:
    """The run by a sampler that is off by so much, and its correction."""
    batch = {"correction": correction, **batch}
    compute = replace(config.compute, device="cpu", sampler=f"off(by={by})")
    return replace(config, compute=compute, batch=replace(config.batch, **batch))


def drawn(config: TrainConfig) -> tuple[Session, Rollout]:
    """A first rollout in which the first completion of each group is the right one."""
    session = prepare(config)
    rollout = draw(session, 0, StepExtras(), [], machine.Stopwatch())
    rollout.rewards_PG.zero_()[:, 0] = 1.0
    return session, rollout


def pattern(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    return (values * count)[:count]


@pytest.mark.parametrize(
    ("correction", "wanted"),
    [
        # d = -.5, 1, 0 in turn, so that exp d = .60653, 2.71828, 1.
        ("token", (0.60653, 2.0, 1.0)),
        ("mask", (0.60653, None, 1.0)),
        ("mask(divides=sampled)", (0.60653, 0.0, 1.0)),
        ("none", ()),
    ],
)
def test_the_trainer_hears_another_sampler(
    correction: str, wanted: tuple[Any, ...], bare: TrainConfig
) -> None:
    session, rollout = drawn(under(bare, correction))
    found, metrics = corrected(session, rollout)
    size, heard = [0, 0, 0], 0
    for before, after in zip(rollout.groups, found.groups, strict=True):
        for said, own in zip(before.completions, after.completions, strict=True):
            assert own.sampled == said.logprobs
            length = len(own.tokens)
            assert same(own.weights, pattern(wanted, length if wanted else 0))
            apart = [a - b for a, b in zip(own.logprobs, own.sampled, strict=True)]
            near = pattern((-0.5, 1.0, 0.0) if wanted else (0.0,), length)
            assert apart == pytest.approx(near, abs=1e-5)
            size, heard = [n + (length + 2 - k) // 3 for k, n in enumerate(size)], heard + length
    assert sum(size) == heard > 40
    first, second, third = size
    assert metrics["sampler/mismatch_mean"] == pytest.approx((first / 2 + second) / heard, abs=1e-5)
    assert metrics["sampler/mismatch_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["sampler/k3"] == pytest.approx(
        (0.106531 * first + 0.718282 * second) / heard, abs=1e-5
    )
    lost = second if correction.startswith("mask") else 0
    assert metrics["sampler/rejected_tokens"] == pytest.approx(lost / heard)
    weighed = {"token": 2.0 * second, "none": heard - 0.60653 * first - third}.get(correction, 0.0)
    counted = heard - second * (correction == "mask")
    mean = (0.60653 * first + third + weighed) / counted
    assert metrics["sampler/weight_mean"] == pytest.approx(mean, abs=1e-4)
    batch = batch_of(session, found.groups, found.rewards_PG, found.taken)
    assert (batch.num_rows, batch.num_tokens) == (8, counted)


def test_a_probe_weighs_what_a_run_weighs(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First steps are by the trainer's log-probs, and by the weights of the correction."""
    batches, make = list[Any](), probe.batch_of

    def kept(*given: Any) -> Any:
        batches.append(make(*given))
        return batches[-1]

    monkeypatch.setattr(probe, "batch_of", kept)
    few = replace(bare.batch, prompts_per_step=16, micro_batch=64)
    config = replace(bare, batch=few, task="arithmetic", reward="random")
    probe.probe(under(config, "token", prompts_per_step=16), ["last(1)"], lambda text: None)
    for row in batches[0].rows:
        apart = [own - said for own, said in zip(row.logprobs, row.sampled, strict=True)]
        assert apart == pytest.approx(pattern((-0.5, 1.0, 0.0), len(apart)), abs=1e-5)
        first = row.advantages[2] if len(row.tokens) > 2 else row.advantages[0] / 0.60653
        relative = [advantage / first for advantage in row.advantages]
        assert relative == pytest.approx(pattern((0.60653, 2.0, 1.0), len(apart)), abs=1e-4)
    assert len(batches[0].rows) > 20


def test_what_no_one_needs_is_not_heard(bare: TrainConfig) -> None:
    """A group without a signal, unless what is rejected of it leaves the denominators."""
    for correction, silent in (
        ("token", ()),
        ("mask(divides=sampled)", ()),
        ("mask", (0, 1, 2, 3)),
    ):
        session, rollout = drawn(under(bare, correction))
        rollout.rewards_PG[0] = 1.0
        found, _ = corrected(session, rollout)
        heard = [n for n, c in enumerate(found.groups[0].completions) if c.sampled]
        assert heard == list(silent)
        assert all(c.sampled for c in found.groups[1].completions)


def test_a_sampler_of_this_process_leaves_all_as_it_is(bare: TrainConfig) -> None:
    session, rollout = drawn(replace(bare, compute=Compute("cpu")))
    assert corrected(session, rollout) == (rollout, {})
    with pytest.raises(UserError, match="it would weigh noise"):
        prepare(replace(bare, batch=replace(bare.batch, correction="token")))


def test_a_sampler_that_agrees_is_trained_as_one_in_this_process(
    bare: TrainConfig, tmp_path: Path
) -> None:
    """Without a correction to the bit, with one but for last digits, and `none` where it is off is not."""
    places = {"local": "local", "off": "none", "off(by=0.0)": "token", "off(by=0.5)": "none"}
    found = []
    for number, (sampler, correction) in enumerate(places.items()):
        config = under(replace(bare, out=str(tmp_path / str(number))), correction)
        compute = replace(config.compute, sampler=sampler, trunk_bytes=0)
        if sampler == "local":
            config = replace(config, batch=replace(config.batch, correction="auto"))
        train(replace(config, compute=compute))
        found.append(Path(tmp_path / str(number)))
    lines = [[line["policy/loss"] for line in metrics_of(of)] for of in found]
    assert lines[1] == lines[0] and tensors_of(found[1]) == tensors_of(found[0])
    assert lines[2] == pytest.approx(lines[0], abs=1e-5)
    assert lines[3] != pytest.approx(lines[0], abs=1e-3)
    logged = [metrics_of(of)[0] for of in found]
    assert not [key for key in logged[0] if key.startswith(("sampler/", "sync/"))]
    assert logged[1]["sync/bytes"] == 1024
    # One forward more of what is trained, beside a forward and a backward of twice as much.
    more = logged[1]["flops/training"] / logged[0]["flops/training"]
    assert 1.3 < more < 1.4 and logged[1]["flops/total"] > logged[0]["flops/total"]
    assert logged[1]["sampler/mismatch_max"] < 1e-5 < logged[3]["sampler/mismatch_mean"]
    assert logged[2]["sampler/weight_mean"] == pytest.approx(1, abs=1e-5)


TRIED = {
    "token": "grpo",
    "mask": "dapo",
    "sequence": "gspo",
    "geometric(low=0.9, high=1.3)": "reinforce_pp",
    "mask(high=3)": "ppo(warmup=1)",
    "token(cap=1.1)": "grpo(kl=0.05, kl_form='k1_reward')",
    "mask(low=0.7)": "grpo(entropy=0.01, entropy_share=0.5)",
}


@pytest.mark.parametrize("correction", TRIED)
def test_micro_batches_change_nothing(correction: str, bare: TrainConfig, tmp_path: Path) -> None:
    found = []
    for size in (1, 3, 8):
        config = under(bare, correction, 0.3, micro_batch=size, updates_per_rollout=2)
        config = replace(
            config, objective=TRIED[correction], steps=2, out=str(tmp_path / str(size))
        )
        optimizer = replace(config.optimizer, learning_rate=1e-4)
        train(replace(config, optimizer=optimizer))
        lines = metrics_of(tmp_path / str(size))
        found.append([{k: v for k, v in line.items() if "flops" not in k} for line in lines])
    assert 0 < found[0][0]["sampler/weight_mean"] != 1 or "geometric" in correction
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("correction", ["token", "mask"])
def test_a_resumed_run_equals_the_uncut_one(
    correction: str, bare: TrainConfig, tmp_path: Path
) -> None:
    for name in ("uncut", "cut"):
        config = replace(under(bare, correction), update="lora(rank=2)", out=str(tmp_path / name))
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-3))
        if name == "cut":
            train(replace(config, steps=2))
        train(config, resume=name == "cut")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "uncut")
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "uncut")


class Heard(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_step_that_is_rejected_whole_is_said(bare: TrainConfig) -> None:
    config = replace(under(bare, "geometric(low=0.99, high=1.01)", steps := 0.9), steps=1)
    assert steps
    heard = Heard()
    found = train(config, heard)
    (line,) = metrics_of(Path(config.out))
    assert (line["sampler/rejected_rows"], line["groups/empty_steps"]) == (1, 1)
    said = [text for text in heard.notes if "rejects all completions" in text]
    assert len(said) == 1 and said[0].startswith("step 1: the correction geometric(low=0.99")
    assert "rejects all completions" in found["nothing_trained"]


def test_a_correction_hides_no_stale_sampler(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof of what is trained compares what the sampler said, not the trainer with itself."""
    monkeypatch.setattr(agreement, "EXACT", 1e-4)
    compute = replace(bare.compute, agreement_every=0)
    for by, stops in ((1e-6, False), (0.05, True)):
        config = under(replace(bare, compute=compute, steps=1, out=f"{bare.out}{by}"), "token", by)
        if stops:
            with pytest.raises(RunStopped, match="log-probs of sampler and trainer differ by"):
                train(config)
        else:
            train(config)
