"""Runs that end before their steps: by a condition, or without better evaluations."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helpers import metrics_of, tensors_of
from modicum import runs, stopping
from modicum.config import Budget, Held, TrainConfig
from modicum.stopping import Condition, Stop, parse
from modicum.training import loop
from modicum.training.loop import Observer, train
from modicum.types import UserError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("accuracy >= 0.9", Condition("accuracy", ">=", 0.9)),
        ("accuracy>=90%", Condition("accuracy", ">=", 0.9)),
        ("  reward/mean > 1e-1 ", Condition("reward/mean", ">", 0.1)),
        ("policy/entropy < .05", Condition("policy/entropy", "<", 0.05)),
        ("reward/length(tokens=30) <= -2", Condition("reward/length(tokens=30)", "<=", -2.0)),
        ("user/mine >= 3.", Condition("user/mine", ">=", 3.0)),
        ("never", None),
    ],
)
def test_conditions_are_read(text: str, wanted: Condition | None) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy >= 0.9", "nothing is called 'acuracy'; did you mean 'accuracy'?"),
        ("reward > 0.5", "did you mean 'reward/mean'?"),
        ("kl > 1", "did you mean 'policy/kl'?"),
        ("step > 10", "nothing is called 'step'"),
        ("accuracy >= 90", "accuracy is a share, at most 1; 90 % is 0.9 or 90%"),
        ("greedy > 150%", "greedy is a share, at most 1"),
        *(
            (text, "a metric, one of >=, <=, >, < and a number are wanted, such as")
            for text in (
                *("", "accuracy", "accuracy >= ", ">= 0.9", "accuracy = 0.9", "accuracy >= 1.2.3"),
                *("accuracy >= 0.9 and 1", "__import__('os').system('id')", "accuracy >= e"),
                *("0.9 <= accuracy", "accuracy >= nan", "accuracy >= 1/0"),
            )
        ),
    ],
)
def test_what_is_no_condition_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig(budget=Budget(stop_when=text), evaluation=Held(eval_every=1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "held", "message"),
    [
        (Budget(stop_when="accuracy >= 0.9"), Held(), "needs eval_every = 10, say"),
        (Budget(patience=2), Held(), "patience = 2 looks at evaluations within the run"),
        (Budget(patience=2), Held(0, eval_every=2), "it needs eval_problems above 0"),
    ],
)
def test_what_evaluations_end_needs_some(budget: Budget, held: Held, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(budget=budget, evaluation=held)
    with pytest.raises(UserError, match="patience must be at least 0"):
        Budget(patience=-1)


def test_the_problems_that_end_a_run_are_not_those_it_is_judged_by() -> None:
    every = Held(eval_every=2)
    assert stopping.split_within(Budget(), every) == "test"
    assert stopping.split_within(Budget(stop_when="reward/mean > 1"), every) == "test"
    assert stopping.split_within(Budget(stop_when="greedy > 0.9"), every) == "tune"
    assert stopping.split_within(Budget(patience=1), every) == "tune"


def test_a_metric_of_steps_counts_as_a_mean_of_five() -> None:
    stop = Stop(Budget(stop_when="reward/mean >= 0.5"))
    values = [1, 1, 0, 0, 0.4, 0.2, 0.9, 1, 0]
    reasons = []
    for step, value in enumerate(values):
        stop.step({"step": step, "reward/mean": value})
        reasons.append(stop.reason)
    assert [bool(reason) for reason in reasons] == [False] * 7 + [True, True]
    assert reasons[7] == "reward/mean >= 0.5 (a mean of 0.5 over 5 steps)"
    stop.step({"step": 9})  # logged nothing: it is not looked at
    assert stop.reason == ""


def entry(step: int, accuracy: float, split: str = "tune") -> dict[str, Any]:
    return {"step": step, "name": f"step {step + 1}", "accuracy": accuracy, "split": split}


def test_patience_counts_evaluations_that_are_not_better() -> None:
    stop = Stop(Budget(patience=2))
    stop.evaluated({"step": -1, "name": "base", "accuracy": 0.9, "split": "test"})
    for step, accuracy in ((1, 0.5), (3, 0.4), (5, 0.6), (7, 0.6)):
        stop.evaluated(entry(step, accuracy))
        assert not stop.reason
    stop.evaluated(entry(8, 0.1, "test"))  # from before it was asked for
    assert not stop.reason
    stop.evaluated(entry(9, 0.59))
    assert stop.reason == (
        "no better accuracy on tune problems than 60.0% after step 6 (patience = 2)"
    )


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Accuracies by the step after which they are found, in the place of a random model's."""
    given: dict[int, float] = {}
    real = loop.evaluate

    def evaluate(policy: Any, task: Any, sampling: Any, split: str, **more: Any) -> Any:
        found = real(policy, task, sampling, split, **more)
        seen.append(split)
        step = len([s for s in seen if s == "tune"]) * 2
        return replace(found, accuracy=given[step]) if split == "tune" else found

    seen: list[str] = []
    monkeypatch.setattr(loop, "evaluate", evaluate)
    return given


def test_a_run_stops_resumes_and_goes_on(
    quick: TrainConfig, tmp_path: Path, evaluations: dict[int, float]
) -> None:
    evaluations.update({2: 0.2, 4: 0.3, 6: 0.3})
    config = replace(
        quick,
        steps=9,
        evaluation=Held(4, 2, eval_every=2),
        budget=Budget(stop_when="accuracy >= 0.3"),
    )

    class Heard(Observer):
        notes: list[str]

        def __init__(self) -> None:
            self.notes = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    heard = Heard()
    found = train(config, heard)
    reason = "accuracy >= 0.3 (0.3 on tune problems)"
    assert (found["steps"], found["stopped"]) == (4, reason)
    assert f"stopped after step 4: {reason}" in heard.notes
    folder = Path(config.out)
    lines = runs.read_lines(folder / "evaluations.jsonl")
    assert [(e["name"], e["split"]) for e in lines] == [
        ("base", "test"),
        ("step 2", "tune"),
        ("step 4", "tune"),
        ("trained", "test"),
    ]
    with pytest.raises(UserError) as caught:
        train(replace(config, steps=20), resume=True)
    assert str(caught.value) == (
        f"{folder} holds a finished run, which stopped since {reason}; --overwrite starts anew,"
        " --stop-when never and --patience 0 go on with it"
    )
    assert (folder / "result.json").exists()
    on = train(replace(config, budget=Budget(), steps=5), resume=True)
    assert (on["steps"], on["stopped"]) == (5, "")
    train(replace(config, budget=Budget(), steps=5, out=str(tmp_path / "whole")))
    assert metrics_of(folder) == metrics_of(tmp_path / "whole")
    assert tensors_of(folder) == tensors_of(tmp_path / "whole")


class Cut(Observer):
    def __init__(self, name: str) -> None:
        self.name = name

    def evaluating(self, name: str, done: int, total: int) -> None:
        if name == self.name:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["step 4", "trained"])
def test_a_run_that_is_cut_stops_where_the_uncut_one_does(
    name: str, quick: TrainConfig, tmp_path: Path
) -> None:
    """By its patience, the state of which stands in its files."""
    config = replace(quick, steps=9, evaluation=Held(4, 2, eval_every=2), budget=Budget(patience=1))
    whole = train(replace(config, out=str(tmp_path / "whole")))
    assert whole["steps"] == 4, "a random model is never right"
    assert whole["stopped"].startswith("no better accuracy on tune problems than")
    with pytest.raises(KeyboardInterrupt):
        train(config, Cut(name))
    found = train(config, resume=True)
    assert (found["steps"], found["stopped"]) == (4, whole["stopped"])
    for file in ("evaluations.jsonl", "samples.jsonl"):
        assert runs.read_lines(Path(config.out) / file) == runs.read_lines(
            tmp_path / "whole" / file
        )
    assert metrics_of(Path(config.out)) == metrics_of(tmp_path / "whole")


def test_a_condition_on_the_reward_ends_after_a_step(bare: TrainConfig) -> None:
    config = replace(bare, steps=9, budget=Budget(stop_when="reward/mean >= 0"))
    found = train(config)
    assert found["steps"] == 5
    assert found["stopped"].startswith("reward/mean >= 0 (a mean of ")
    assert len(runs.checkpoints(Path(config.out))) == 2
    assert runs.checkpoints(Path(config.out))[-1].name == "step-000005"
    last = runs.read_lines(Path(config.out) / "samples.jsonl")[-1]
    assert last["step"] == 4
    with pytest.raises(
        UserError, match="nothing is called 'reward/digit'; did you mean 'reward/digits'"
    ):
        train(replace(config, budget=Budget(stop_when="reward/digit > 1"), out=config.out + "-2"))


def test_a_result_says_why_it_stopped() -> None:
    from modicum.results import RunResult, fill

    assert fill(RunResult, {"update": "full", "stopped": "x"}, "t").stopped == "x"
    assert fill(RunResult, {"update": "full"}, "t").stopped == ""
    assert asdict(RunResult("full"))["stopped"] == ""
