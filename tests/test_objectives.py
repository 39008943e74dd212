"""Objectives: shared cases, hand-computed constants, and the contract of every member."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cases import load
from modicum.engine.logprobs import chunks
from modicum.objectives import OBJECTIVES, Dapo, Grpo, Gspo, Objective, Tokens, parse
from modicum.objectives.base import Clipping, Counts
from modicum.objectives.parts import centred, clipped, kl3, over_deviation
from modicum.training import step
from modicum.training.metrics import rollout_metrics, training_metrics
from modicum.training.rollout import Rollout
from modicum.types import Completion, Group, Problem, UserError

WITH_KL = [f"{name}(kl=0.05, kl_form='k3')" for name in OBJECTIVES]
WITHOUT_KL = [f"{name}(kl=0)" if cls.kl else name for name, cls in OBJECTIVES.items()]
ALL = [*WITHOUT_KL, *WITH_KL]
CLIPPING = [name for name, cls in OBJECTIVES.items() if issubclass(cls, Clipping)]
LENGTHS = torch.tensor([3, 5, 1, 2, 4])
LIMIT = 7
COUNTS = Counts(len(LENGTHS), int(LENGTHS.sum()), LIMIT)
HOW = {"sequence_mean": "grpo", "token_mean": "dapo", "constant": "dr_grpo"}


def grouped(given: dict[str, Any]) -> Tensor:
    """The rewards [P, G] of a case; its groups are of equal size, null is no verdict."""
    rewards: dict[int, list[float]] = {}
    for reward, group in zip(given["rewards"], given["group"], strict=True):
        rewards.setdefault(group, []).append(math.nan if reward is None else reward)
    return torch.tensor(list(rewards.values()), dtype=torch.float)


def group(*lengths: int) -> Group:
    """A group of completions that are as long as given."""
    made = [Completion(tuple(range(n)), (-1.0,) * n, "", finished=True) for n in lengths]
    return Group(Problem("p", "q", "a"), (1,), tuple(made))


def sample(seed: int = 0) -> tuple[Tensor, Tokens]:
    """Policy log-probs and tokens (with weights left to the test) of rows of LENGTHS."""
    draw = torch.Generator().manual_seed(seed)
    count = int(LENGTHS.sum())
    policy, old, reference = (-3 * torch.rand(3, count, generator=draw)).unbind()
    advantages = torch.randn(len(LENGTHS), generator=draw).repeat_interleave(LENGTHS)
    row_N = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS)
    return policy.requires_grad_(), Tokens(old, advantages, reference, torch.ones(count), row_N)


def run(text: str, policy: Tensor, tokens: Tokens, rows: list[slice]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the objective, added up over parts of the rows."""
    goal, total = parse(text), torch.zeros(())
    starts = [0, *LENGTHS.cumsum(0).tolist()]
    policy.grad = None
    for part in rows:
        lengths = LENGTHS[part]
        span = slice(starts[part.start], starts[part.start + len(lengths)])
        inputs = replace(tokens.part(span), weights_N=goal.weights(lengths, COUNTS))
        if not goal.needs_reference:
            inputs = replace(inputs, reference_N=None)
        value, _ = goal.loss(policy[span], inputs)
        value.backward()
        total = total + value.detach()
    assert policy.grad is not None
    return total, policy.grad.clone()


# Advantages ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in load("advantage") if "tokens" not in c["input"]])
def test_advantage_cases(case: dict[str, Any]) -> None:
    given = case["input"]
    rewards = grouped(given)
    plain = given.get("std") == "none"
    found = centred(rewards)[0] if plain else over_deviation(rewards)
    assert found.flatten().tolist() == pytest.approx(case["expected"], abs=case["tol"])


def test_length_plays_no_part_in_advantages() -> None:
    """ADV-08, a choice: a completion without tokens would be left out of its group.

    Here there are none: the end token counts, so the shortest completion has length 1
    (tests/test_rollout.py). Advantages look at rewards alone; the case's [0, 0] is not ours.
    """
    (case,) = [c for c in load("advantage") if "tokens" in c["input"]]
    assert case["policy"], "the case is a choice of definition"
    assert centred(grouped(case["input"]))[0].tolist() == [[49.5, -49.5]]


@pytest.mark.parametrize("right, up, down", [(1, 2.474, -0.353), (4, 0.935, -0.935)])
def test_advantages_of_binary_rewards(right: int, up: float, down: float) -> None:
    """methods B.0, G = 8."""
    rewards = torch.tensor([[1.0] * right + [0.0] * (8 - right)])
    found = over_deviation(rewards)[0]
    assert found[0].item() == pytest.approx(up, abs=1e-3)
    assert found[-1].item() == pytest.approx(down, abs=1e-3)


def test_missing_verdicts_are_left_out_of_the_deviation_too() -> None:
    found = over_deviation(torch.tensor([[1.0, 0.0, math.nan, 1.0]]))[0].tolist()
    deviation = math.sqrt((2 / 9 + 4 / 9) / 2) + 1e-4
    assert found == pytest.approx([1 / 3 / deviation, -2 / 3 / deviation, 0, 1 / 3 / deviation])


def test_groups_with_one_or_no_verdict_have_no_advantage() -> None:
    rewards = torch.tensor([[math.nan, 1.0], [math.nan, math.nan]])
    assert over_deviation(rewards).tolist() == [[0, 0], [0, 0]]


def test_dead_group_fraction_case() -> None:
    (case,) = load("dead_group_fraction")
    totals = grouped(case["input"])
    scores = [[{"accuracy": r} for r in row] for row in totals.tolist()]
    metrics = rollout_metrics(0, Rollout([group(1, 1)] * len(totals), scores, totals))
    assert metrics["groups/no_signal"] == case["expected"]


@pytest.mark.parametrize("text, trained", [("grpo", [1, 2]), ("grpo(kl=0.1)", [3, 4, 1, 2])])
def test_groups_without_signal_count_but_train_only_under_a_kl_term(
    text: str, trained: list[int]
) -> None:
    """KL-04: their rows are left out when beta is 0; the counts stay those of the batch."""
    rewards = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    batch = step.make_batch(parse(text), [group(3, 4), group(1, 2)], rewards)
    assert sorted(len(row.tokens) for row in batch.rows) == sorted(trained)
    assert (batch.num_rows, batch.num_tokens) == (4, 10)
    assert batch.signal == {1} and batch.has_signal


# Adding up -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", load("loss_agg"))
def test_loss_agg_cases(case: dict[str, Any]) -> None:
    """Rows that are not kept are taken out before anything is counted."""
    given = case["input"]
    keep = given.get("keep", [1] * len(given["loss"]))
    kept = [row for row, wanted in zip(given["loss"], keep, strict=True) if wanted]
    tokens, parts = sum(map(len, kept)), given.get("micro_batches", 1)
    total = 0.0
    for start in range(parts):
        part = kept[start::parts]
        lengths = torch.tensor([len(row) for row in part], dtype=torch.long)
        values = torch.tensor([v for row in part for v in row], dtype=torch.float)
        total += (
            (values * parse(HOW[given["mode"]]).weights(lengths, Counts(len(kept), tokens, LIMIT)))
            .sum()
            .item()
        )
    assert total == pytest.approx(case["expected"], abs=case["tol"])


def test_loss_window_case() -> None:
    """LOSS-04: equal losses give that loss, into however many parts the batch is split."""
    (case,) = load("loss_window")
    given, lengths = case["input"], torch.tensor([3, 2])
    parts = given["steps_per_generation"] * given["grad_accum"]
    weight = parse("dapo").weights(lengths, Counts(2 * parts, 5 * parts, LIMIT)).sum().item()
    assert parts * weight * given["per_token_loss"] == pytest.approx(case["expected"])


def test_metric_windows_case() -> None:
    """LOSS-05: a step logs its own mean; one with fewer tokens counts as much."""
    (case,) = load("metric_windows")
    keys = ("loss", "entropy", "clipped", "ratio_error")
    logged = [
        training_metrics({"kl": sum(window), "tokens": len(window), **dict.fromkeys(keys, 0.0)})
        for window in case["input"]["windows"]
    ]
    assert sum(m["policy/kl"] for m in logged) / len(logged) == case["expected"]


@pytest.mark.parametrize(
    "name, weight", [("grpo", (1 / 2, 1 / 18)), ("dapo", (1 / 10,) * 2), ("dr_grpo", (1 / 40,) * 2)]
)
def test_token_weights_of_lengths_1_and_9(name: str, weight: tuple[float, float]) -> None:
    """methods B.13: sequences 1:1, 1:9, and 1:9 scaled by 1/(2 L), L = 20."""
    found = parse(name).weights(torch.tensor([1, 9]), Counts(2, 10, 20)).tolist()
    assert found == pytest.approx([weight[0], *[weight[1]] * 9])


@pytest.mark.parametrize(
    "name, first, later",
    [
        # A = +-0.5 / (sqrt(0.5) + 1e-4) = +-0.70701 with the deviation, +-0.5 without.
        ("grpo", -0.353503, 0.0392781),
        ("dapo", -0.0707007, 0.0707007),
        ("dr_grpo", -0.0125, 0.0125),
    ],
)
def test_gradient_by_hand_at_ratio_1(name: str, first: float, later: float) -> None:
    goal, lengths = parse(name), torch.tensor([1, 9])
    advantages = goal.advantages(torch.tensor([[1.0, 0.0]]))[0]
    policy = torch.full((10,), -1.5, requires_grad=True)
    weight, row_N = goal.weights(lengths, Counts(2, 10, 20)), torch.tensor([0] + [1] * 9)
    tokens = Tokens(policy.detach(), advantages.repeat_interleave(lengths), None, weight, row_N)
    goal.loss(policy, tokens)[0].backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([first] + [later] * 9, rel=1e-4)


# Clipping and KL -------------------------------------------------------------------------


@pytest.mark.parametrize("case", load("clip_objective"))
def test_clip_objective_cases(case: dict[str, Any]) -> None:
    given = case["input"]
    ratio, advantage = torch.tensor([given["ratio"]]), torch.tensor([float(given["adv"])])
    found = clipped(ratio, advantage, given["eps"], given["eps"]).item()
    assert found == pytest.approx(case["expected"], abs=case["tol"])


def test_dapo_lets_ratios_rise_further_than_grpo() -> None:
    """1.25 lies between 1.2 and 1.28; downwards both stop at 0.8."""
    for name, ratio, advantage, slope in (
        *(("grpo", 1.25, 1.0, 0.0), ("dapo", 1.25, 1.0, -1.25), ("dapo", 1.3, 1.0, 0.0)),
        *(("grpo", 0.75, -1.0, 0.0), ("dapo", 0.75, -1.0, 0.0), ("dapo", 0.85, -1.0, 0.85)),
    ):
        policy = torch.tensor([math.log(ratio)], requires_grad=True)
        rest = (None, torch.ones(1), torch.zeros(1, dtype=torch.long))
        tokens = Tokens(torch.zeros(1), torch.tensor([advantage]), *rest)
        value, sums = parse(name).loss(policy, tokens)
        value.backward()
        assert policy.grad is not None
        assert policy.grad.item() == pytest.approx(slope), (name, ratio)
        assert sums["clipped"].item() == (slope == 0.0)


@pytest.mark.parametrize("case", load("kl3"))
def test_kl3_cases(case: dict[str, Any]) -> None:
    given = case["input"]
    found = kl3(torch.tensor([given["policy"]]), torch.tensor([given["ref"]])).item()
    assert found == pytest.approx(case["expected"], abs=case["tol"])


def test_kl3_stays_finite_case() -> None:
    (case,) = load("kl3_finite")
    policy = torch.tensor([case["input"]["policy"]], requires_grad=True)
    value = kl3(policy, torch.tensor([case["input"]["ref"]]))
    value.backward()
    assert policy.grad is not None
    assert value.isfinite().all() and value.item() > 1e6
    assert policy.grad.isfinite().all()


def test_k3_in_the_loss_has_the_gradient_of_the_forward_kl() -> None:
    """methods B.9, by enumeration over 6 tokens.

    The mean of k3 over the policy's samples is KL(policy || reference). Its gradient with
    the samples held fixed, which is what a loss has (classic GRPO), is that of
    KL(reference || policy). Both are checked: this is what `kl=` does here, not a slip.
    """
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=draw, dtype=torch.double, requires_grad=True)
    reference = torch.randn(6, generator=draw, dtype=torch.double).log_softmax(-1)
    policy = logits.log_softmax(-1)
    estimate = (policy.exp().detach() * kl3(policy, reference)).sum()
    stated = (policy.exp() * (policy - reference)).sum()
    forward = (reference.exp() * (reference - policy)).sum()
    gradients = [
        torch.autograd.grad(value, logits, retain_graph=True)[0]
        for value in (estimate, forward, stated)
    ]
    assert estimate.item() == pytest.approx(stated.item())
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (gradients[0] - gradients[2]).abs().max() > 0.01


APART = {
    "grpo": ([-0.49990002] * 3 + [1.49970006], [-1.161886, -0.38729533, 0.38729533, 1.161886]),
    "dr_grpo": ([-0.25] * 3 + [0.75], [-15.0, -5.0, 5.0, 15.0]),
    "rloo": ([-1 / 3] * 3 + [1.0], [-20.0, -20 / 3, 20 / 3, 20.0]),
}
APART |= dict.fromkeys(("dapo", "gspo", "cispo", "sapo"), APART["grpo"])
APART |= dict.fromkeys(("ipo", "dppo", "reinforce_pp_baseline"), APART["dr_grpo"])
APART["maxrl"] = ([-1.0] * 3 + [3.0], [-1.0, -1 / 3, 1 / 3, 1.0])
APART["reinforce_pp"] = APART["ppo"] = ([0.0] * 3 + [1.0], [0.0, 10.0, 20.0, 30.0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_groups_in_one_call_have_the_advantages_of_each_alone(name: str) -> None:
    """Deviations of 0.5 and 12.9 (and 0) are not mixed, in any order."""
    small, large = [0.0, 0.0, 0.0, 1.0], [0.0, 10.0, 20.0, 30.0]
    by_hand = [*APART[name], [0.0] * 4]
    together = parse(name).advantages(torch.tensor([small, large, [7.0] * 4]))
    backwards = parse(name).advantages(torch.tensor([[7.0] * 4, large, small]))
    for number, (rewards, wanted) in enumerate(zip([small, large], by_hand, strict=False)):
        expected = pytest.approx(wanted, rel=1e-5)
        assert together[number].tolist() == expected
        assert backwards[2 - number].tolist() == expected
        assert parse(name).advantages(torch.tensor([rewards]))[0].tolist() == expected
    if parse(name).compares:
        assert together[2].tolist() == backwards[0].tolist() == by_hand[2]


# The contract of every member ------------------------------------------------------------


@pytest.mark.parametrize("text", [*ALL, *(f"{n}(clip=0.1, clip_high=0.5)" for n in CLIPPING)])
def test_text_round_trip(text: str) -> None:
    made = parse(text)
    assert parse(str(made)) == made
    assert str(parse(str(made))) == str(made)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bad_settings_are_refused(name: str) -> None:
    wrong = [("kl=-1", "kl"), ("kl=1, kl_form='k4'", "did you mean"), ("entropy=-1", "entropy")]
    wrong += [("entropy_share=0", "entropy_share"), ("entropy_share=1.5", "entropy_share")]
    if name in CLIPPING:
        wrong += [("clip=0", "clip"), ("dual_clip=1", "dual_clip"), ("clip_high=-1", "clip_high")]
    for given, word in wrong:
        with pytest.raises(UserError, match=word):
            parse(f"{name}({given})")
    with pytest.raises(UserError, match=name):
        parse(f"{name}x")


@pytest.mark.parametrize("text", ALL)
def test_gradient_at_ratio_1_is_that_of_the_advantage_times_the_log_prob(text: str) -> None:
    goal = parse(text)
    policy, tokens = sample()
    here = policy.detach()
    tokens = replace(tokens, old_N=here.clone(), reference_N=here)
    _, gradient = run(text, policy, tokens, [slice(0, 5)])
    weight = goal.weights(LENGTHS, COUNTS)
    # The reference is the policy here, so a KL term adds nothing.
    torch.testing.assert_close(gradient, -weight * tokens.advantages_N)


class LossRow(NamedTuple):
    """A completion of an example: its advantage and its tokens' log-probs."""

    advantage: float
    old: tuple[float, ...]
    policy: tuple[float, ...]
    reference: tuple[float, ...]


# Ratios within usual bounds, above and below them, and no advantage.
ROWS = (
    LossRow(1.5, (-1.0, -2.0, -0.5), (-0.9, -2.3, -0.28), (-1.0, -1.5, -0.5)),
    LossRow(-0.5, (-1.2,), (-1.0,), (-1.2,)),
    LossRow(-0.5, (-0.7, -0.3), (-1.0, -0.3), (-0.7, -0.4)),
    LossRow(0.0, (-0.4,), (-0.6,), (-0.1,)),
)


# Probabilities that moved by .36, -.04 and .15, by .52 and by -.45: the ratios do not tell.
MOVED = (
    LossRow(1.5, (-3.0, -2.0, -0.5), (-0.9, -2.3, -0.28), (-1.0, -1.5, -0.5)),
    LossRow(-0.5, (-1.2,), (-0.2,), (-1.2,)),
    LossRow(-0.5, (-0.2, -0.3), (-1.0, -0.3), (-0.7, -0.4)),
    LossRow(0.0, (-0.4,), (-0.6,), (-0.1,)),
)


class LossExample(NamedTuple):
    """An objective worked out by hand: with kl=0.1 (k3), for one group of rewards 1, 0, 0, 0."""

    advantages: tuple[float, ...]
    loss: float
    gradient: tuple[float, ...]
    """By the policy's log-prob of every token, row after row."""
    rows: tuple[LossRow, ...] = ROWS
    counts: Counts = Counts(num_rows=4, num_tokens=9, max_tokens=5)


OVER_DEVIATION = (1.49970006, -0.49990002, -0.49990002, -0.49990002)
# Of RLOO as well: advantages are given with the rows.
CONSTANT = (-0.082412, -0.0616891, 0.0009874, 0.0314414, -0.0017493, 0.0254758, -0.0032436)
# A mean over all tokens, with a clip of .2 on both sides.
TOKEN_MEAN = (-0.1831378, -0.1370868, 0.0021942, 0.0698698, -0.0038873, 0.0566129, -0.007208)
INSIDE, LAST = (-0.1370868, -0.2054852), (0.0566129, -0.007208)
EXAMPLES = {
    "grpo": LossExample(
        OVER_DEVIATION,
        -0.1069292,
        (-0.1373533, -0.1028151, 0.0016457, 0.1572071, -0.0043732, 0.0636895, -0.016218),
    ),
    "dr_grpo": LossExample((0.75, -0.25, -0.25, -0.25), -0.1495389, CONSTANT),
    "dapo": LossExample(
        OVER_DEVIATION,
        -0.3399881,
        (-0.1831378, -0.1370868, -0.2054852, 0.0698698, -0.0038873, 0.0566129, -0.007208),
    ),
    "rloo": LossExample((1.0, -0.33333333, -0.33333333, -0.33333333), -0.1495389, CONSTANT),
    "gspo": LossExample(
        OVER_DEVIATION,
        -0.119873,
        (
            *(8.29e-05, -0.0056836, 0.0003268, 0.0842538, 0.0784873, 0.0844976),
            *(-0.0625013, -0.0624988),
        ),
        (
            LossRow(1.0, (-1.0, -2.0, -0.5), (-0.99, -2.02, -0.46), (-1.0, -1.5, -0.5)),
            LossRow(-1.0, (-1.0, -2.0, -0.5), (-0.99, -2.02, -0.46), (-1.0, -1.5, -0.5)),
            LossRow(0.5, (-1.0, -0.5), (-1.0001, -0.4999), (-1.0, -0.5)),
        ),
    ),
    "maxrl": LossExample((3.0, -1.0, -1.0, -1.0), -0.3323086, TOKEN_MEAN),
    "cispo": LossExample(
        OVER_DEVIATION, 1.031678, (-0.832276, *INSIDE, 0.1580392, 0.0210754, *LAST), MOVED
    ),
    "sapo": LossExample(
        OVER_DEVIATION,
        -0.9556904,
        (-0.0031405, -0.1350363, -0.2023727, 0.0803349, 0.0191, *LAST),
        MOVED,
    ),
    "ipo": LossExample(
        (0.75, -0.25, -0.25, -0.25),
        -0.2642137,
        (0.0010574, *INSIDE, 0.0070236, -0.0038873, *LAST),
        MOVED,
    ),
    "dppo": LossExample(
        (0.75, -0.25, -0.25, -0.25),
        -0.113198,
        (0.0010574, *INSIDE, 0.1580392, -0.0038873, *LAST),
        MOVED,
    ),
    "reinforce_pp": LossExample((1.0, 0.0, 0.0, 0.0), -0.3323086, TOKEN_MEAN),
    "reinforce_pp_baseline": LossExample((0.75, -0.25, -0.25, -0.25), -0.3323086, TOKEN_MEAN),
    "ppo": LossExample((1.0, 0.0, 0.0, 0.0), -0.3323086, TOKEN_MEAN),
}


def check_example(name: str) -> None:
    """The objective's example: advantages, loss, gradient."""
    example, goal = EXAMPLES[name], parse(f"{name}(kl=0.1, kl_form='k3')")
    found = goal.advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0]
    assert found.tolist() == pytest.approx(example.advantages, abs=1e-6)
    rows = example.rows
    lengths = torch.tensor([len(row.policy) for row in rows])
    policy = torch.tensor([p for row in rows for p in row.policy], requires_grad=True)
    tokens = Tokens(
        torch.tensor([p for row in rows for p in row.old]),
        torch.tensor([row.advantage for row in rows]).repeat_interleave(lengths),
        torch.tensor([p for row in rows for p in row.reference]),
        goal.weights(lengths, example.counts),
        torch.arange(len(lengths)).repeat_interleave(lengths),
    )
    value, _ = goal.loss(policy, tokens)
    value.backward()
    assert policy.grad is not None
    assert value.item() == pytest.approx(example.loss, abs=1e-6)
    assert policy.grad.tolist() == pytest.approx(example.gradient, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_example_of_a_member(name: str) -> None:
    check_example(name)


class GrpoOfAll(Grpo):
    """Planted: the deviation over G in place of G - 1."""

    name = "grpo"

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return centred(rewards_PG)[0] / (rewards_PG.std(1, correction=0, keepdim=True) + 1e-4)


class DapoByRows(Dapo):
    """Planted: each completion counts the same."""

    name = "dapo"

    def weights(self, lengths_R: Tensor, counts: Counts) -> Tensor:
        return Grpo.weights(lengths_R, counts)


class GspoByTokens(Gspo):
    """Planted: the ratio of each token."""

    name = "gspo"

    def log_ratios(self, policy_N: Tensor, tokens: Tokens) -> Tensor:
        return policy_N - tokens.old_N


@pytest.mark.parametrize("wrong", [GrpoOfAll, DapoByRows, GspoByTokens])
def test_a_wrong_formula_fails_the_contract(
    wrong: type[Objective], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, wrong.name, wrong)
    with pytest.raises(AssertionError):
        check_example(wrong.name)


@pytest.mark.parametrize("name", WITHOUT_KL)
def test_a_loss_of_whole_rows_gets_whole_rows(name: str) -> None:
    """Chunks of the head change nothing: they end where the objective needs them to."""
    goal, (policy, tokens) = parse(name), sample()
    tokens = replace(tokens, old_N=policy.detach() + 1e-4 * tokens.old_N)
    whole = run(name, policy, tokens, [slice(0, 5)])
    weight, ends = goal.weights(LENGTHS, COUNTS), LENGTHS.cumsum(0).tolist()
    policy.grad, total = None, torch.zeros(())
    inputs = replace(tokens, weights_N=weight, reference_N=None)
    for part in chunks(len(policy), 4, ends if goal.whole_rows else None):
        value, _ = goal.loss(policy[part], inputs.part(part))
        value.backward()
        total = total + value.detach()
    torch.testing.assert_close((total, policy.grad), whole, atol=1e-6, rtol=1e-5)


def test_chunks_end_at_row_ends() -> None:
    ends = [3, 8, 9, 11, 15]
    assert [(c.start, c.stop) for c in chunks(15, 4, ends)] == [(0, 3), (3, 8), (8, 11), (11, 15)]
    assert [(c.start, c.stop) for c in chunks(15, 9, ends)] == [(0, 9), (9, 15)]
    assert [(c.start, c.stop) for c in chunks(15, 1, ends)] == [
        (0, 3),
        (3, 8),
        (8, 9),
        (9, 11),
        (11, 15),
    ]
    assert [(c.start, c.stop) for c in chunks(9, 4)] == [(0, 4), (4, 8), (8, 9)]
    assert list(chunks(0, 4)) == []


class Stepped(Grpo):
    """An advantage for each token: the first gets all of it."""

    name = "stepped"

    def row_advantages(self, groups: Any, rewards_PG: Tensor) -> Any:
        return [
            [(a, *[0.0] * (len(c.tokens) - 1)) for a, c in zip(row, g.completions, strict=True)]
            for row, g in zip(self.advantages(rewards_PG).tolist(), groups, strict=True)
        ]


def test_advantages_may_differ_from_token_to_token(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    batch = step.make_batch(Stepped(), [group(3, 4), group(1, 2)], rewards)
    found = [list(row.advantages) for row in batch.rows]
    assert found == [[pytest.approx(0.707, abs=1e-3)], [pytest.approx(-0.707, abs=1e-3), 0.0]]
    monkeypatch.setattr(Stepped, "row_advantages", lambda *_: [[(1.0,) * 3] * 2] * 2)
    with pytest.raises(UserError, match="an advantage a token, or one for all of them"):
        step.make_batch(Stepped(), [group(3, 4), group(1, 2)], rewards)


def test_rloo_is_dr_grpo_times_the_size_of_the_group_over_one_less() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, math.nan, 0.0], [0.3] * 4])
    found, plain = (parse(n).advantages(rewards) for n in ("rloo", "dr_grpo"))
    torch.testing.assert_close(found[0], plain[0] * 4 / 3)
    torch.testing.assert_close(found[1], plain[1] * 3 / 2)
    assert not found[2].any()
    alone = torch.tensor([[1.0, math.nan]])
    assert parse("rloo").advantages(alone).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("right, wrong, clips", [(1.0, 0.0, True), (-1.0, -1.01005, False)])
def test_a_gspo_row_is_clipped_as_one(right: float, wrong: float, clips: bool) -> None:
    """methods 2.1.4: log rho = .01, -.02, .04 has s = 1.01005 for all three tokens."""
    goal = parse("gspo")
    policy = torch.tensor([0.01, -0.02, 0.04], requires_grad=True)
    rest = (torch.full((3,), right), None, torch.full((3,), 1 / 3), torch.zeros(3).long())
    value, sums = goal.loss(policy, Tokens(torch.zeros(3), *rest))
    value.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-wrong / 3] * 3, abs=1e-6)
    assert sums["clipped"].item() == (3 if clips else 0)


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_change_neither_loss_nor_gradient(text: str, size: int) -> None:
    policy, tokens = sample()
    whole = run(text, policy, tokens, [slice(0, 5)])
    parts = [slice(start, start + size) for start in range(0, 5, size)]
    torch.testing.assert_close(run(text, policy, tokens, parts), whole, atol=1e-6, rtol=1e-5)
    assert whole[1].abs().max() > 1e-3


@pytest.mark.parametrize("text", ALL)
def test_extreme_ratios_give_no_nan(text: str) -> None:
    policy, tokens = sample()
    gaps = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0])
    tokens.old_N.copy_(policy.detach() + gaps.repeat(3))
    tokens.advantages_N.copy_(torch.tensor([-1.0, 0.0, 1.0]).repeat_interleave(5))
    value, gradient = run(text, policy, tokens, [slice(0, 5)])
    assert not value.isnan() and gradient.isfinite().all()


@pytest.mark.parametrize("name", CLIPPING)
def test_the_surrogate_keeps_within_its_bounds(name: str) -> None:
    goal = parse(name)
    assert isinstance(goal, Clipping)
    high = goal.clip if goal.clip_high is None else goal.clip_high
    ratio = torch.linspace(0, 5, 101)
    gain = clipped(ratio, torch.full_like(ratio, 2.0), goal.clip, high)
    loss = clipped(ratio, torch.full_like(ratio, -2.0), goal.clip, high)
    assert gain.max().item() == pytest.approx(2 * (1 + high))
    assert loss.max().item() == pytest.approx(-2 * (1 - goal.clip))
    assert gain.min() == 0 and loss.min() == -10, "what makes things worse is never cut"


@pytest.mark.parametrize("name", WITHOUT_KL)
def test_zero_advantages_without_kl_give_exactly_no_gradient(name: str) -> None:
    policy, tokens = sample()
    tokens.advantages_N.zero_()
    value, gradient = run(name, policy, tokens, [slice(0, 5)])
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("text", WITH_KL)
def test_the_kl_term_pulls_to_the_reference_and_only_there(text: str) -> None:
    policy, tokens = sample()
    tokens.advantages_N.zero_()
    reference = tokens.reference_N
    assert reference is not None
    value, gradient = run(text, policy, tokens, [slice(0, 5)])
    assert value > 0
    assert torch.equal(gradient.sign(), (policy.detach() - reference).sign())
    at_home = replace(tokens, reference_N=policy.detach().clone())
    value, gradient = run(text, policy, at_home, [slice(0, 5)])
    assert value == 0 and not gradient.any()
