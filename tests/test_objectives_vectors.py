"""Objectives against worked numbers: advantages, slopes of the surrogates, forms of the KL."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.config import Sampling
from modicum.engine.sampling import token_logprobs
from modicum.objectives import Objective, Tokens, notes, parse
from modicum.objectives.parts import change, kl_term, over_mean, to_go, whitened
from modicum.types import Completion, Group, Problem, UserError

NAN = math.nan


def group(*completions: Completion) -> Group:
    return Group(Problem("p", "q", "a"), (1,), completions)


def told(length: int, old: tuple[float, ...] = (), reference: tuple[float, ...] = ()) -> Completion:
    old = old or (-1.0,) * length
    return Completion(tuple(range(length)), old, "", True, reference=reference)


def slope(
    goal: Objective, ratio: float, advantage: float, old: float = 0.0
) -> tuple[float, float, float]:
    """Loss of a token, d loss / d log pi, and whether it is cut."""
    policy = torch.tensor([old + math.log(ratio)], requires_grad=True)
    rest = (None, torch.ones(1), torch.zeros(1, dtype=torch.long))
    tokens = Tokens(torch.tensor([old]), torch.tensor([advantage]), *rest)
    value, sums = goal.loss(policy, tokens)
    value.backward()
    assert policy.grad is not None
    return value.item(), policy.grad.item(), sums["clipped"].item()


# Advantages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rewards", "wanted"),
    [
        ("grpo", [1, 0, 0, 0], [1.4997, -0.4999, -0.4999, -0.4999]),
        ("dr_grpo", [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        ("rloo", [1, 0, 0, 0], [1, -0.3333, -0.3333, -0.3333]),
        ("maxrl", [1, 0, 0, 0], [3, -1, -1, -1]),
        ("grpo", [1, 1, 1, 0], [0.4999, 0.4999, 0.4999, -1.4997]),
        ("rloo", [1, 1, 1, 0], [0.3333, 0.3333, 0.3333, -1]),
        ("maxrl", [1, 1, 1, 0], [0.3333, 0.3333, 0.3333, -1]),
        ("maxrl", [1, NAN, 0, 0], [2, 0, -1, -1]),
        ("maxrl", [-1, 0, 0, 0], [0, 0, 0, 0]),
        ("maxrl", [NAN, NAN, NAN, NAN], [0, 0, 0, 0]),
    ],
)
def test_advantages(name: str, rewards: list[float], wanted: list[float]) -> None:
    found = parse(name).advantages(torch.tensor([rewards], dtype=torch.float))
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "maxrl", "reinforce_pp_baseline"])
@pytest.mark.parametrize("level", [0.0, 1.0, 0.1])
def test_equal_rewards_have_no_advantage(name: str, level: float) -> None:
    groups, rewards = [group(told(3), told(1))] * 2, torch.full((2, 2), level)
    found = parse(name).row_advantages(groups, rewards)
    assert not any(
        a for of in found for row in of for a in (row if isinstance(row, tuple) else [row])
    )


def test_a_success_among_eight_weighs_seven() -> None:
    assert over_mean(torch.tensor([[1.0] + [0.0] * 7]))[0, 0] == pytest.approx(7)


def test_returns_of_reinforce_pp() -> None:
    """beta .1, r = (1, 0), k1 = ([.2, -.1], [.3, 0, .1])."""
    first = told(2, (-1.0, -1.0), (-1.2, -0.9))
    second = told(3, (-1.0, -1.0, -1.0), (-1.3, -1.0, -1.1))
    assert to_go(torch.tensor([0.2, -0.1, 0.3, 0.0, 0.1]), [2, 3]).tolist() == pytest.approx(
        [0.1, -0.1, 0.4, 0.1, 0.1]
    )
    goal = parse("reinforce_pp(kl=0.1)")
    for groups, rewards in (
        ([group(first, second)], [[1.0, 0.0]]),
        ([group(first), group(second)], [[1.0], [0.0]]),
    ):
        found = goal.row_advantages(groups, torch.tensor(rewards))
        flat = [list(row) for of in found for row in of if isinstance(row, tuple)]
        assert flat[0] == pytest.approx([1.0772, 1.1130], abs=1e-4)
        assert flat[1] == pytest.approx([-0.7659, -0.7122, -0.7122], abs=1e-4)


def test_advantages_of_the_baseline() -> None:
    """Groups (r, length) {(1,1),(0,3)} and {(1,2),(1,2)}: the second, all right, still pushes."""
    groups = [group(told(1), told(3)), group(told(2), told(2))]
    goal = parse("reinforce_pp_baseline")
    found = goal.row_advantages(groups, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    wanted = [[(1.7678,), (-1.0607,) * 3], [(0.3536,) * 2] * 2]
    for of, by_hand in zip(found, wanted, strict=True):
        for row, values in zip(of, by_hand, strict=True):
            assert row == pytest.approx(values, abs=1e-4)
    # Rows without a verdict are in no mean and have no advantage.
    rewards = torch.tensor([[1.0, 0.0], [1.0, NAN]])
    less = goal.row_advantages([groups[0], group(told(2), told(50))], rewards)
    # Tokens .5, -.5 x 3, 0 x 2: mean -1/6, variance 1/6.
    assert less[0][0] == pytest.approx((0.6667 / 0.40825,), abs=1e-3)
    assert less[1][1] == (0.0,) * 50


def test_whitening_ignores_rounding() -> None:
    tokens = 1 + 1e-7 * torch.tensor([0.0, 1.0, -1.0, 2.0])
    assert whitened(tokens.double(), torch.ones(4).bool()).abs().max() < 3e-3
    assert not whitened(torch.tensor([5.0]), torch.tensor([True])).any()


def test_a_kl_in_the_reward_lowers_the_advantages_of_what_led_to_it() -> None:
    """grpo, beta .5: k1 = [.2, -.1] for the right answer, 0 for the wrong one."""
    groups = [group(told(2, (-1.0, -1.0), (-1.2, -0.9)), told(1, (-1.0,), (-1.0,)))]
    goal = parse("dr_grpo(kl=0.5, kl_form='k1_reward')")
    found = goal.row_advantages(groups, torch.tensor([[1.0, 0.0]]))
    assert found[0][0] == pytest.approx((0.5 - 0.05, 0.5 + 0.05))
    assert found[0][1] == pytest.approx((-0.5,))


# Surrogates ------------------------------------------------------------------------------

CLIP = [(1, 0.5, -0.5), (1, 0.9, -0.9), (1, 1.1, -1.1), (1, 1.5, 0), (1, 4, 0)]
CLIP += [(-1, 0.5, 0), (-1, 0.9, 0.9), (-1, 1.1, 1.1), (-1, 1.5, 1.5), (-1, 4, 4)]


@pytest.mark.parametrize(("advantage", "ratio", "wanted"), CLIP)
@pytest.mark.parametrize("name", ["grpo", "maxrl", "reinforce_pp(kl=0)"])
def test_slopes_of_the_clip(name: str, advantage: float, ratio: float, wanted: float) -> None:
    _, found, cut = slope(parse(name), ratio, advantage)
    assert found == pytest.approx(wanted, abs=1e-5) and cut == (wanted == 0)


@pytest.mark.parametrize(("advantage", "ratio", "wanted"), CLIP)
def test_the_dual_clip_ends_the_push_of_a_token_that_rose(
    advantage: float, ratio: float, wanted: float
) -> None:
    value, found, cut = slope(parse("grpo(dual_clip=3)"), ratio, advantage)
    ends = (advantage, ratio) == (-1, 4)
    assert found == pytest.approx(0 if ends else wanted, abs=1e-5)
    assert cut == (ends or wanted == 0)
    assert not ends or value == pytest.approx(3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted"), [(8, 1, 5), (0.3, 1, 0.3), (8, -1, -5), (1, 2, 2)]
)
def test_slopes_of_cispo(ratio: float, advantage: float, wanted: float) -> None:
    _, found, cut = slope(parse("cispo(cap=5)"), ratio, advantage)
    assert found == pytest.approx(-wanted, rel=1e-5) and cut == (ratio > 5)


def test_the_cap_of_cispo_is_a_ratio() -> None:
    with pytest.raises(UserError, match=r"cap must be at least 1 .* not 0\.2"):
        parse("cispo(cap=0.2)")


@pytest.mark.parametrize(
    ("advantage", "ratio", "value", "wanted"),
    [
        *[(1, 0.5, 1.5102, 0.4700), (1, 1, 2, 1), (1, 1.5, 2.4898, 1.4100), (1, 3, 3.5232, 1.2599)],
        *[(-1, 0.5, -1.4159, -0.4671), (-1, 1, -1.9048, -1)],
        *[(-1, 1.5, -2.3936, -1.4012), (-1, 3, -3.3939, -1.1663)],
    ],
)
def test_slopes_of_sapo(advantage: float, ratio: float, value: float, wanted: float) -> None:
    found = slope(parse("sapo"), ratio, advantage)
    assert found == pytest.approx((-value, -wanted, 0), abs=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "ipo", "dppo_up", "dppo_down"),
    [
        (0.5, 0.9, 0, 0, 1.8),
        (0.9, 0.5, 0, 0.5556, 0),
        (0.01, 0.08, 8, 8, 8),
        (0.001, 0.01, 10, 10, 10),
        (1e-6, 0.1, 1e4, 1e4, 1e4),  # 1e5 is cut to 1e4, and the token not dropped
    ],
)
def test_slopes_of_masks_by_probability(
    old: float, new: float, ipo: float, dppo_up: float, dppo_down: float
) -> None:
    """PPO's clip drops all but the second of these for A > 0: the point of the method."""
    for name, advantage, wanted in (
        *[("ipo", 1.0, ipo), ("ipo", -1.0, ipo)],
        *[("dppo", 1.0, dppo_up), ("dppo", -1.0, dppo_down)],
    ):
        value, found, cut = slope(parse(name), new / old, advantage, math.log(old))
        assert found == pytest.approx(-advantage * wanted, rel=1e-4), name
        assert value == pytest.approx(-advantage * wanted, rel=1e-4), name
        assert cut == (wanted == 0)


def test_a_change_of_probability_is_exact_where_it_is_small() -> None:
    old = torch.tensor([-0.5, -0.5, -20.0, 0.0])
    new = torch.tensor([-0.5 + 1e-6, -0.5, -30.0, -1e-7])
    wanted = [math.exp(-0.5) * math.expm1(float(new[0] - old[0])), 0, -2.0611e-9, -1e-7]
    assert change(new, old).tolist() == pytest.approx(wanted, rel=1e-4)


# KL --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "policy", "reference", "ratio", "wanted", "value"),
    [
        ("k3", -1, -1.5, 1, 0.3935, 0.1065),
        ("k3_corrected", -1, -1.5, 1, 0.5, 0.1065),
        ("k2", -1, -1.5, 1, 0.5, 0.125),
        ("k1_reward", -1, -1.5, 1, 0, 0.5),
        ("k3", -3, -1, 1, -6.389, 4.389),
        ("k3_corrected", -3, -1, 1, -2, 4.389),
        ("k3_corrected", -3, -1, 0.5, -1, 4.389),
        ("k2", -3, -1, 1, -2, 2),
        ("k2", -3, 97, 1, -20, 1800),
    ],
)
def test_forms_of_the_kl(
    form: str, policy: float, reference: float, ratio: float, wanted: float, value: float
) -> None:
    there = torch.tensor([float(policy)], requires_grad=True)
    term, found = kl_term(form, there, torch.tensor([float(reference)]), torch.tensor([ratio]))
    # The form in the reward adds nothing to the loss.
    slopes = torch.autograd.grad(term.sum(), there) if term.requires_grad else [term]
    assert slopes[0].item() == pytest.approx(wanted, abs=1e-3)
    assert found.item() == pytest.approx(value, abs=1e-3)


def test_the_ratio_of_the_corrected_form_is_the_tokens_and_has_no_gradient() -> None:
    policy = torch.tensor([-1.0, -1.0], requires_grad=True)
    old, reference = torch.tensor([-1.0, -1.0 - math.log(2)]), torch.tensor([-1.5, -1.5])
    tokens = Tokens(old, torch.zeros(2), reference, torch.ones(2), torch.zeros(2).long())
    for name in ("grpo", "gspo"):
        goal = parse(f"{name}(kl=1, kl_form='k3_corrected')")
        (found,) = torch.autograd.grad(goal.loss(policy, tokens)[0], policy)
        assert found.tolist() == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize("form", ["k2", "k3_corrected"])
def test_k2_in_the_loss_has_the_gradient_of_the_stated_kl(form: str) -> None:
    """By enumeration over 6 tokens, off policy with the ratio as weight: KL(policy || reference)."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=draw, dtype=torch.double, requires_grad=True)
    other, reference = torch.randn(2, 6, generator=draw, dtype=torch.double).log_softmax(-1)
    policy = logits.log_softmax(-1)
    old = policy.detach() if form == "k2" else other
    term, _ = kl_term(form, policy, reference, (policy.detach() - old).exp())
    found, wanted = (
        torch.autograd.grad(value, logits, retain_graph=True)[0]
        for value in ((old.exp() * term).sum(), (policy.exp() * (policy - reference)).sum())
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grpo(kl_form='k2')", "kl_form does nothing while kl is 0"),
        ("gspo(kl=0.1, kl_form='k1_reward')", "one ratio a completion takes one advantage"),
        ("gspo(entropy_share=0.2)", "one ratio a completion takes one advantage"),
        ("grpo(cap=3)", "grpo has no argument 'cap'"),
        ("cispo(dual_clip=3)", "cispo has no argument 'dual_clip'"),
        ("sapo(rising=0)", "rising must be above 0"),
        ("ipo(eps=1)", "eps must be above 0 and below 1"),
        ("reinforce", "did you mean 'reinforce_pp'"),
    ],
)
def test_what_goes_together_with_nothing_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        parse(text)


# Entropy ---------------------------------------------------------------------------------


def entropies(logits: Tensor) -> Tensor:
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=5, top_p=0.9)])
def test_the_entropy_has_its_gradient_beside_that_of_the_log_prob(sampling: Sampling) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, generator=draw, dtype=torch.float)
    token, weight = torch.tensor([0, 3, 8, 1]), torch.tensor([0.3, -1.0, 2.0, 0.5])

    def both(scores: Tensor) -> Tensor:
        logprob, entropy = token_logprobs(scores, token, sampling, entropy_learns=True)
        return (weight * logprob).sum() - 0.7 * (weight * entropy).sum()

    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(both(leaf), leaf)
    step = 1e-2
    for row, column in ((0, 0), (1, 5), (2, 8), (3, 2)):
        ahead, back = logits.clone(), logits.clone()
        ahead[row, column] += step
        back[row, column] -= step
        numeric = (both(ahead) - both(back)).item() / (2 * step)
        assert found[row, column].item() == pytest.approx(numeric, abs=2e-3)
    _, entropy = token_logprobs(leaf, token, sampling)
    assert not entropy.requires_grad


def test_a_token_that_cannot_be_has_no_part_in_the_gradient_of_the_entropy() -> None:
    leaf = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    logprob, entropy = token_logprobs(leaf, torch.tensor([0]), Sampling(), entropy_learns=True)
    (found,) = torch.autograd.grad((logprob + entropy).sum(), leaf)
    assert found.isfinite().all() and found[0, 1] == 0


def test_the_bonus_is_weighed_as_the_loss_is() -> None:
    policy = torch.zeros(2, requires_grad=True)
    entropy = torch.tensor([1.0, 3.0], requires_grad=True)
    tokens = Tokens(torch.zeros(2), torch.ones(2), None, torch.tensor([0.5, 0.25]), torch.zeros(2))
    value, _ = parse("grpo(entropy=0.1)").loss(policy, tokens, entropy)
    assert value.item() == pytest.approx(-(0.5 * 1.1 + 0.25 * 1.3))
    assert torch.autograd.grad(value, entropy)[0].tolist() == pytest.approx([-0.05, -0.025])


# Words -----------------------------------------------------------------------------------


def test_a_run_is_told_which_objectives_are_one() -> None:
    (found,) = notes(parse("grpo(kl=0.1)"), 1)
    assert found.startswith("with one update a rollout grpo is the same method as gspo:")
    assert "dapo is the same method as cispo, sapo:" in notes(parse("dapo"), 1)[0]
    assert notes(parse("grpo"), 2) == notes(parse("rloo"), 1) == []
    assert "mean reward of a group" in notes(parse("maxrl"), 1, num_terms=2)[0]
    assert notes(parse("maxrl"), 1, num_terms=1) == []


def test_the_checks_in_the_docs_run() -> None:
    page = (Path(__file__).parent.parent / "docs" / "objectives.md").read_text(encoding="utf-8")
    found: list[Any] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(found) == page.count("\n## ") == 10
    for code in found:
        exec(code, {})


def test_rewards_say_where_to_go() -> None:
    """Of a group, or of the whole batch where completions of a problem are not compared."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert parse("grpo").signal(rewards).tolist() == [True, False]
    assert parse("reinforce_pp").signal(rewards).tolist() == [True, True]
    assert parse("reinforce_pp").signal(torch.ones(2, 1)).tolist() == [False, False]
    assert replace(parse("reinforce_pp"), kl=0.0).droppable is False
