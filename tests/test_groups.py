"""Which groups are trained: filter and refill, what the loss is divided by, cut completions, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from helpers import metrics_of, tensors_of
from modicum import draws, rewards
from modicum.config import Optimizer, Steps, TrainConfig
from modicum.draws import All, Filter, Refill, Taken
from modicum.objectives import OBJECTIVES, parse
from modicum.training import step
from modicum.training.loop import train
from modicum.training.metrics import kept_metrics
from modicum.training.rollout import Rollout
from modicum.types import Completion, Group, Problem, UserError

T, F = True, False


@dataclass(frozen=True)
class Even(rewards.Term):
    """1 for a completion of which the first digit is even: seldom the same in a whole group."""

    name: ClassVar[str] = "accuracy"

    def score(self, task: Any, problem: Any, completion: Any) -> float:
        digits = [c for c in completion.text if c.isascii() and c.isdigit()]
        return float(bool(digits) and int(digits[0]) % 2 == 0)


@pytest.fixture
def rated(bare: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """`bare` with a reward of 0 and 1 called accuracy, some groups of which have a signal."""
    monkeypatch.setitem(rewards.REWARDS, "accuracy", Even)
    batch = Steps(prompts_per_step=4, group_size=3)
    rate = Optimizer(learning_rate=1e-2)
    return replace(bare, reward="accuracy", steps=3, batch=batch, optimizer=rate, update="last(1)")


def chosen(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, batch=replace(config.batch, **changes))


# The choice ------------------------------------------------------------------------------


def test_expressions() -> None:
    assert draws.parse("all") == All() and draws.parse("filter") == Filter()
    assert draws.parse("refill(max_draws=10, cap=4)") == Refill() == draws.parse("refill")
    assert str(Refill(max_draws=3, cap=2)) == "refill(max_draws=3, cap=2)"
    assert Steps(groups="refill(cap=4)").groups == "refill"
    assert [Steps(groups=text).divides for text in ("all", "filter", "refill")] == [
        *("sampled", "sampled", "kept")
    ]
    assert Steps(groups="filter", denominators="kept").divides == "kept"
    assert Steps(groups="refill", denominators="sampled").divides == "sampled"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"groups": "fliter"}, "unknown groups 'fliter'; did you mean 'filter'?"),
        ({"groups": "refill(cap=0)"}, "refill: cap must be at least 1, not 0"),
        ({"groups": "refill(max_draws=0)"}, "refill: max_draws must be at least 1, not 0"),
        ({"groups": "refill(caps=2)"}, "refill has no argument 'caps'; it takes max_draws=10, cap"),
        ({"groups": "filter + refill"}, "cannot be joined"),
        ({"groups": 3}, "groups must be a text, not 3"),
        ({"cut": "drop"}, "cut is 'drop'"),
        ({"denominators": "drawn"}, "denominators is 'drawn'"),
    ],
)
def test_what_is_no_choice_is_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        Steps(**settings)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_kept_goes_by_the_order_of_draw() -> None:
    signals = [F, T, F, T, T, F, T]
    assert All().kept(signals, 3) == [0, 1, 2, 3, 4, 5, 6]
    assert Filter().kept([F, T, T], 3) == [1, 2]
    assert Refill().kept(signals, 3) == [1, 3, 4]
    assert Refill().kept([F, F], 2) == []


@pytest.mark.parametrize(
    ("signals", "rounds", "more"),
    [
        ([T] * 8, 1, 0),
        ([T] * 3 + [F] * 5, 1, 14),  # 5 missing, 3 of 8 kept: ceil(13.33)
        ([T] * 4 + [F] * 4, 1, 8),
        ([F] * 8, 1, 24),  # 80 at a tenth, and the cap leaves 24
        ([T] * 7 + [F] * 1, 1, 2),  # ceil(8 / 7)
        ([T] * 7 + [F] * 13, 2, 3),  # ceil(20 / 7)
        ([T] * 1 + [F] * 31, 2, 0),  # the cap
        ([T] * 7 + [F] * 24, 2, 1),
        ([T] * 3 + [F] * 5, 10, 0),  # rounds
        ([T] * 9 + [F] * 3, 2, 0),
    ],
)
def test_how_many_more_are_drawn(signals: list[bool], rounds: int, more: int) -> None:
    assert Refill().more(signals, 8, rounds) == more
    assert All().more(signals, 8, rounds) == Filter().more(signals, 8, rounds) == 0


def test_a_tenth_is_the_least_share_that_is_believed() -> None:
    assert Refill(cap=100).more([F] * 20, 2, 1) == 20
    assert Refill(cap=100).more([T] + [F] * 19, 2, 1) == 10
    assert Refill(cap=100).more([T] * 2 + [F] * 18, 5, 1) == 30
    assert Refill(cap=1).more([F] * 8, 8, 1) == 0


@pytest.mark.parametrize(
    ("rate", "rollouts"), [(0.02, 53.6), (0.1, 14.05), (0.5, 8.06), (0.9, 14.05)]
)
def test_rollouts_for_a_kept_group(rate: float, rollouts: float) -> None:
    found = draws.expected(Refill(), [rate], 16, 8)
    assert found.rollouts == pytest.approx(rollouts, abs=0.05 if rate == 0.02 else 0.005)
    assert found.rollouts == pytest.approx(8 / draws.signal_share(rate, 8))


def test_what_refill_is_expected_to_draw() -> None:
    half = draws.expected(Refill(), [0.5], 16, 8)
    assert 16 <= half.drawn < 16.5 and half.kept == 16 and half.empty == 0
    tenth = draws.expected(Refill(), [0.1], 16, 8)
    assert 28 < tenth.drawn < 33 and 15.9 < tenth.kept <= 16
    rare = draws.expected(Refill(), [0.001], 4, 8)
    assert 15.5 < rare.drawn <= 16 and rare.kept < 0.4 and rare.empty > 0.8
    assert draws.expected(All(), [0.1], 16, 8).drawn == 16
    assert 8.5 < draws.expected(Filter(), [0.1], 16, 8).kept < 9.7
    assert draws.expected(Refill(), [0.0], 4, 8)[:2] == (0.0, float("inf"))


# A rollout -------------------------------------------------------------------------------


def made(*texts: str, finished: Sequence[bool] = ()) -> Group:
    ends = finished or [True] * len(texts)
    some = (
        Completion(tuple(map(ord, text)), (-1.0,) * len(text), text, end)
        for text, end in zip(texts, ends, strict=True)
    )
    return Group(Problem(texts[0], "q", "a"), (1, 2), tuple(some))


def test_a_signal_is_of_verdicts() -> None:
    nan, groups = float("nan"), [made("a", "b", "c")] * 5
    rewards_PG = torch.tensor([[0.2, 0.0, 0.2]] * 5)
    verdicts = [[0, 0, 0], [1, 0, 1], [1, nan, 1], [nan, nan, 1], [0, nan, 1]]
    scores = [[{"format": 1.0, "accuracy": float(v)} for v in row] for row in verdicts]
    assert Rollout(groups, scores, rewards_PG).signals == [F, T, F, F, T]
    lenient = [[{"accuracy(lenient=True)": s["accuracy"]} for s in row] for row in scores]
    assert Rollout(groups, lenient, rewards_PG).signals == [F, T, F, F, T]
    plain = [[{"format": 1.0}] * 3] * 5
    assert Rollout(groups, plain, rewards_PG).signals == [T] * 5


REWARDS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
DRAWN = [made("aa", "bbb"), made("c", "d"), made("eeee", "f"), made("g", "hh")]


@pytest.mark.parametrize(
    ("taken", "groups", "rows", "tokens"),
    [
        (Taken(), [0, 0, 2, 2, 3, 3], 8, 15),
        (Taken([0, 2, 3]), [0, 0, 2, 2, 3, 3], 8, 15),
        (Taken([0, 2], "kept"), [0, 0, 2, 2], 4, 10),
        (Taken([0, 2], "sampled"), [0, 0, 2, 2], 8, 15),
        (Taken([], "kept"), [], 0, 0),
    ],
)
def test_denominators_are_of_named_sets(
    taken: Taken, groups: list[int], rows: int, tokens: int
) -> None:
    batch = step.make_batch(parse("grpo"), DRAWN, REWARDS, taken)
    assert sorted(row.group for row in batch.rows) == groups
    assert (batch.num_rows, batch.num_tokens) == (rows, tokens)
    assert batch.signal == set(groups)


def test_what_is_masked_is_in_the_mean_and_not_in_the_loss() -> None:
    group = made("aa", "bbb", "c", "d", finished=[T, F, T, T])
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    batch = step.make_batch(parse("dr_grpo"), [group], rewards_PG, Taken(cut="mask"))
    assert [row.advantage for row in batch.rows] == [0.75, -0.25, -0.25]
    assert (batch.num_rows, batch.num_tokens) == (3, 4)
    under_kl = step.make_batch(parse("dr_grpo(kl=0.1)"), [group], rewards_PG, Taken(cut="mask"))
    assert len(under_kl.rows) == 3
    scored = step.make_batch(parse("dr_grpo"), [group], rewards_PG)
    assert (len(scored.rows), scored.num_rows, scored.num_tokens) == (4, 4, 7)


def test_cut_completions_may_have_reward_0(rated: TrainConfig) -> None:
    group = made("2", "4", "3", finished=[T, F, F])
    given: Any = (None, rewards.reward_of(Even()), [group], [])
    assert step.score(*given)[1].tolist() == [[1.0, 1.0, 0.0]]
    scores, totals = step.score(*given, "zero")
    assert totals.tolist() == [[1.0, 0.0, 0.0]]
    assert scores == [[{"accuracy": 1.0}, {"accuracy": 0.0}, {"accuracy": 0.0}]]
    assert step.score(*given, "mask")[1].tolist() == [[1.0, 1.0, 0.0]]


def test_the_kept_have_a_series_of_their_own() -> None:
    groups = [made("aa", "bbbb"), made("c", "d", finished=[T, F])]
    scores = [[{"accuracy": 1.0}, {"accuracy": 0.0}], [{"accuracy": 0.0}] * 2]
    totals = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    found = kept_metrics(Rollout(groups, scores, totals, (2,), Taken([0], "kept")))
    assert found == {
        "groups/drawn": 2,
        "groups/rounds": 1,
        "groups/kept": 1,
        "groups/factor": 2.0,
        "kept/reward": 0.5,
        "kept/accuracy": 0.5,
        "kept/length": 3.0,
        "kept/truncated": 0.0,
    }
    none = kept_metrics(Rollout(groups, scores, totals, (2,), Taken([], "kept")))
    assert none == {"groups/drawn": 2, "groups/rounds": 1, "groups/kept": 0}


# Runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if parse(o).droppable])
def test_filter_divided_by_what_was_sampled_is_all(
    objective: str, rated: TrainConfig, tmp_path: Path
) -> None:
    whole = replace(rated, objective=objective, out=str(tmp_path / "all"))
    train(whole)
    train(chosen(replace(whole, out=str(tmp_path / "filter")), groups="filter"))
    lines = metrics_of(tmp_path / "filter")
    assert 0 < sum(line["groups/kept"] for line in lines) < 12, "some are left out"
    assert tensors_of(tmp_path / "all") == tensors_of(tmp_path / "filter")
    for one, other in zip(metrics_of(tmp_path / "all"), lines, strict=True):
        assert one.items() <= other.items()
