"""Which groups are trained: filter and refill, what the loss is divided by, cut completions, tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from helpers import metrics_of, tensors_of
from modicum import draws, rewards, runs
from modicum.config import Held, Optimizer, Sampling, Steps, TrainConfig
from modicum.draws import All, Filter, Refill, Taken
from modicum.engine.base import Asked
from modicum.engine.samplers import LocalSampler
from modicum.objectives import OBJECTIVES, parse
from modicum.training import rollout, step
from modicum.training.loop import Observer, train
from modicum.training.metrics import kept_metrics
from modicum.training.rollout import Rollout
from modicum.types import Completion, Group, Problem, UserError

T, F = True, False


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
        ({"groups": "filter", "group_size": 1}, "groups = filter needs a group_size of at least 2"),
        ({"groups": "refill", "group_size": 1}, "groups = refill needs a group_size of at least 2"),
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
    ("rate", "rollouts", "drawn"),
    [(0.02, 53.6, 64), (0.1, 14.05, 28.1), (0.5, 8.06, 16.13), (0.9, 14.05, 28.1)],
)
def test_rollouts_for_a_kept_group(rate: float, rollouts: float, drawn: float) -> None:
    found = draws.expected(Refill(), [rate], 16, 8)
    assert found.rollouts == pytest.approx(rollouts, abs=0.05 if rate == 0.02 else 0.005)
    assert found.drawn == pytest.approx(drawn, abs=0.01)
    assert draws.expected(All(), [rate], 16, 8).drawn == 16
    assert draws.expected(Filter(), [rate], 16, 8).drawn == 16


def test_what_a_step_is_expected_to_come_to() -> None:
    found = draws.expected(Refill(cap=2), [0.0, 0.5], 16, 8)
    assert found == pytest.approx((0.49609, 16.1260, 32, 15.875), abs=1e-3)
    assert draws.expected(Refill(), [0.0], 4, 8) == (0.0, None, 16, 0.0)
    assert draws.expected(Refill(), [1.0], 4, 8) == (0.0, None, 16, 0.0)


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


@pytest.mark.parametrize(
    ("objective", "rewards", "wanted", "signal"),
    [
        # 1, 0, 0 have the mean 1/3 and the deviation 1 / sqrt 3; the masked nine tokens have no part.
        ("reinforce_pp", [[5.0, 1.0], [0.0, 0.0]], [1.1547005, *[-0.5773503] * 2], {0, 1}),
        ("reinforce_pp", [[5.0, 0.0], [0.0, 0.0]], [0.0, 0.0, 0.0], set()),
        # Less the group's mean, which has the masked row: -2, 0, 0.
        ("reinforce_pp_baseline", [[5.0, 1.0], [0.0, 0.0]], [-1.1547005, *[0.5773503] * 2], {0}),
    ],
)
def test_whitening_does_not_count_what_is_masked(
    objective: str, rewards: list[list[float]], wanted: list[float], signal: set[int]
) -> None:
    drawn = [made("i" * 9, "b", finished=[F, T]), made("c", "d")]
    given = parse(f"{objective}(kl=0)")
    batch = step.make_batch(given, drawn, torch.tensor(rewards), Taken(cut="mask"))
    rows = sorted(batch.rows, key=lambda row: row.group)
    assert [value for row in rows for value in row.advantages] == pytest.approx(wanted)
    assert (batch.num_rows, batch.num_tokens, batch.signal) == (3, 3, signal)


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


class Cut(Observer):
    """Ends a run after so many steps, as a crash would."""

    def __init__(self, after: int = -1) -> None:
        self.after, self.notes = after, list[str]()

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] + 1 == self.after:
            raise MemoryError

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_refill_resumed_equals_the_uncut_run_and_the_ledger_is_the_samplers_count(
    rated: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = [0, 0]
    real = LocalSampler.sample

    def sample(self: LocalSampler, *args: Any, **named: Any) -> Any:
        groups = real(self, *args, **named)
        counted[0] += sum(len(group) for group in groups)
        counted[1] += sum(len(c.tokens) for group in groups for c in group)
        return groups

    monkeypatch.setattr(LocalSampler, "sample", sample)
    config = chosen(replace(rated, evaluation=Held(2, 1, eval_every=2)), groups="refill(cap=3)")
    whole = train(replace(config, out=str(tmp_path / "whole")))
    ledger = whole["ledger"]
    assert {"train", "rejected", "evaluate"} <= set(ledger)
    assert set(ledger) <= {"train", "rejected", "evaluate", "surplus"}
    assert [sum(entry[key] for entry in ledger.values()) for key in ("completions", "tokens")] == (
        counted
    )
    assert ledger["evaluate"]["completions"] == 3 * 2 * 2
    of_steps = sum(entry["tokens"] for name, entry in ledger.items() if name != "evaluate")
    assert whole["generated_tokens"] == of_steps
    lines = metrics_of(tmp_path / "whole")
    assert ledger["train"]["completions"] == sum(3 * line["groups/kept"] for line in lines)
    assert max(line["groups/rounds"] for line in lines) > 1
    assert lines[-1]["tokens/rejected"] == of_steps - ledger["train"]["tokens"] > 0
    for line in lines:
        assert line["groups/factor"] == line["groups/drawn"] / line["groups/kept"]
        assert line["policy/effective_rate"] == line["policy/learning_rate"] == 1e-2
    with pytest.raises(MemoryError):
        train(config, Cut(3))
    assert [path.name for path in runs.checkpoints(Path(config.out))] == ["step-000002"]
    cut = train(config, resume=True)
    assert metrics_of(Path(config.out)) == lines
    assert tensors_of(Path(config.out)) == tensors_of(tmp_path / "whole")
    assert (cut["ledger"], cut["empty_steps"]) == (ledger, 0)
    samples = runs.read_lines(Path(config.out) / "samples.jsonl")
    first = [line for line in samples if line["step"] == 0]
    assert len(first) == 3 * lines[0]["groups/drawn"]
    assert sum(line["kept"] for line in first) == 3 * lines[0]["groups/kept"]
    assert samples == runs.read_lines(tmp_path / "whole" / "samples.jsonl")


def test_a_known_base_was_not_generated_by_the_run(rated: TrainConfig) -> None:
    from modicum.evaluate import Evaluation

    found = train(replace(rated, steps=0, evaluation=Held(2, 1)), base=Evaluation(accuracy=0.0))
    assert found["ledger"] == {"evaluate": {"completions": 4, "tokens": 32}}


def test_problems_and_noise_go_on_within_a_step_and_after_it(
    rated: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    real = LocalSampler.sample

    def sample(self: LocalSampler, told: Asked) -> Any:
        asked.extend((key, told.keep_trunk) for key in told.keys)
        return real(self, told)

    monkeypatch.setattr(LocalSampler, "sample", sample)
    config = chosen(replace(rated, steps=2), groups="refill(max_draws=2)")
    train(config)
    lines = metrics_of(Path(config.out))
    drawn = [int(line["groups/drawn"]) for line in lines]
    assert drawn[0] > 4
    wanted = [("train", 0, number, k) for number in (0, 1) for k in range(drawn[number])]
    assert [key for key, _ in asked] == wanted
    assert [kept for (*_, k), kept in asked] == [k < 4 for *_, k in wanted], "states of a round"
    ids = [line["id"] for line in runs.read_lines(Path(config.out) / "samples.jsonl")][::3]
    assert len(dict.fromkeys(ids)) == sum(drawn), "no problem comes twice"


def test_a_step_that_keeps_nothing_moves_nothing(
    rated: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments and counts of steps are as before; what it generated is spent."""
    real, heard = rollout.score, Cut()

    def score(*args: Any) -> Any:
        scores, totals = real(*args)
        if blank:
            scores = [[{"accuracy": 0.0} for _ in row] for row in scores]
        return scores, totals * (not blank)

    blank = False
    monkeypatch.setattr(rollout, "score", score)
    settings = Optimizer(learning_rate=1e-2, weight_decay=0.1)
    config = chosen(replace(rated, steps=1, optimizer=settings), groups="refill(cap=2)")
    before = train(config)
    tensors = tensors_of(Path(config.out))
    blank = True
    after = train(replace(config, steps=3), heard, resume=True)
    assert tensors_of(Path(config.out)) == tensors and any("exp_avg" in name for name in tensors)
    assert (before["empty_steps"], after["empty_steps"]) == (0, 2)
    last = metrics_of(Path(config.out))[-1]
    assert (last["groups/drawn"], last["groups/kept"], last["groups/empty_steps"]) == (8, 0, 2)
    assert "groups/factor" not in last and "policy/loss" not in last
    assert after["generated_tokens"] > before["generated_tokens"]
    alone = replace(config, steps=1, out=str(tmp_path / "alone"))
    train(alone, heard)
    (said,) = [note for note in heard.notes if "had a signal" in note]
    assert (
        "else: the reward accuracy(lenient=True) pays for unmarked answers too, an easier" in said
    )


def test_without_a_signal_it_says_what_else_may_help(bare: TrainConfig) -> None:
    heard = Cut()
    train(replace(bare, reward="accuracy", steps=1), heard)
    (said,) = [note for note in heard.notes if "had a signal" in note]
    assert said.endswith(
        ". Nothing has been trained; else: --groups refill draws on until groups have one, the"
        " reward accuracy(lenient=True) pays for unmarked answers too, an easier level of the task"
        " has more right answers"
    )


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["zero", "mask"])
def test_runs_that_zero_or_mask_what_is_cut(rated: TrainConfig, cut: str, tmp_path: Path) -> None:
    heard = Cut()
    config = replace(rated, sampling=Sampling(max_tokens=40, temperature=3.0))
    train(chosen(config, cut=cut), heard)
    lines = metrics_of(Path(config.out))
    assert all(0 < line["completions/truncated"] < 1 for line in lines)
    assert (cut == "mask") == any("(cut = mask)" in note for note in heard.notes)
    train(replace(config, out=str(tmp_path / "score")))
    assert tensors_of(tmp_path / "score") != tensors_of(Path(config.out))
    samples = runs.read_lines(Path(config.out) / "samples.jsonl")
    assert cut == "mask" or not any(s["reward"] for s in samples if not s["finished"])


@pytest.mark.slow
def test_micro_batches_do_not_matter_under_refill(rated: TrainConfig, tmp_path: Path) -> None:
    config = chosen(replace(rated, steps=2), groups="refill", cut="mask")
    train(config)
    train(chosen(replace(config, out=str(tmp_path / "small")), micro_batch=2, rollout_batch=3))
    for one, other in zip(
        metrics_of(Path(config.out)), metrics_of(tmp_path / "small"), strict=True
    ):
        one, other = ({k: v for k, v in m.items() if "flops/" not in k} for m in (one, other))
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_all_with_kept_denominators_is_all(rated: TrainConfig, tmp_path: Path) -> None:
    """Every group is kept, so that the two counts are one."""
    train(replace(rated, steps=1))
    train(chosen(replace(rated, steps=1, out=str(tmp_path / "kept")), denominators="kept"))
    assert tensors_of(Path(rated.out)) == tensors_of(tmp_path / "kept")


def test_the_plan_says_what_refill_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modicum.commands import plan

    config = chosen(TrainConfig(), groups="refill")
    found, told = plan._signal(config, "0.1")
    assert told == (
        "signal         57% of groups, at a pass rate of 0.1 of every problem: 14.05 rollouts for"
        " each; refill draws 28.1 groups a step (1.76 times the sampling) for 16 with one"
    )
    assert found["signal"]["alike"]["rollouts"] == pytest.approx(14.046, abs=1e-3)
    entry = {"name": "base", "accuracy": 0.25, "scores": [0.0, 0.5]}
    monkeypatch.setattr("modicum.evaluate.read", lambda *_: SimpleNamespace(**entry))
    found, told = plan._signal(config, "runs/full-seed0")
    assert set(found["signal"]) == {"alike", "each"}
    assert told.splitlines()[1].startswith(
        "signal         50% of groups, at a pass rate of 0.25 of the 2 problems of runs/full-seed0:"
        " 16.13 rollouts for each; refill draws 32.3 groups"
    )
    assert "inf rollouts for each; refill draws 64 groups" in plan._signal(config, "0")[1]
    for wrong, says in {"1.5": "--pass-rate must be at least 0", "nan": "--pass-rate must"}.items():
        with pytest.raises(UserError, match=says):
            plan._signal(config, wrong)


def test_the_check_of_the_page_holds() -> None:
    page = Path(__file__).parent.parent / "docs" / "sampling.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    exec(code, {})
