"""The learning rate that a run finds from its own first rollout, and `modicum probe`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import metrics_of, tensors_of
from modicum import cli
from modicum.config import Optimizer, Sampling, Steps, TrainConfig, read_toml
from modicum.engine.logprobs import logprobs
from modicum.recipes import start_rate
from modicum.rewards import parse as parse_reward
from modicum.study import Tuning, cells
from modicum.study.design import PlannedArm
from modicum.training import loop, rate
from modicum.training.loop import Observer, run_step, train
from modicum.training.probe import probe
from modicum.training.session import Session, prepare
from modicum.training.step import make_batch, sample_groups, score
from modicum.types import UserError
from modicum.updates import UPDATES, parse

FIRST = [cls.examples[0] for cls in UPDATES.values()]
FEW = ("full", "lora(rank=2)", "sgd", "sparse(keep=0.1)")


class Crash(Exception):
    """What a run does not expect."""


class Notes(Observer):
    """Keeps what is told, and may raise in the middle of a run, as a crash would."""

    def __init__(self, stop_at: int = -1) -> None:
        self.texts: list[str] = []
        self.stop_at = stop_at

    def note(self, text: str) -> None:
        self.texts.append(text)

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.stop_at:
            raise Crash


@pytest.fixture
def small(bare: TrainConfig) -> TrainConfig:
    """Two steps of four problems, with tokens enough to look at."""
    batch = Steps(prompts_per_step=4, group_size=4, micro_batch=6)
    return replace(bare, steps=2, batch=batch, sampling=Sampling(max_tokens=16))


def at(config: TrainConfig, out: Path, learning_rate: float | None) -> TrainConfig:
    optimizer = replace(config.optimizer, learning_rate=learning_rate)
    return replace(config, out=str(out), optimizer=optimizer)


def rate_in(folder: Path) -> float:
    return float(read_toml(folder / "config.toml")["optimizer"]["learning_rate"])


def test_the_search_follows_the_square_law() -> None:
    seen = []

    def kl_at(tried: float) -> float:
        seen.append(tried)
        return 400.0 * tried**2

    found, kl = rate.search(kl_at, 1.0, 0.01)
    assert found == pytest.approx(0.005)
    assert (seen[0], seen[-1]) == (1.0, pytest.approx(0.01, rel=1.0))
    assert kl == pytest.approx(0.04, rel=10)


def test_the_search_comes_back_from_what_is_not_finite_and_from_nothing() -> None:
    assert rate.search(lambda r: float("nan") if r > 0.1 else r**2, 1.0, 0.01)[0] == pytest.approx(
        0.1
    )
    assert rate.search(lambda r: 0.0 if r < 0.01 else r**2, 1e-5, 0.01)[0] == pytest.approx(0.1)
    assert rate.search(lambda r: float("inf"), 1.0, 0.01)[1] == 0


def test_rates_are_pooled_by_their_kl() -> None:
    # KL 0.01 at 1 and at 0.5 is 0.01 and 0.04 at 1: 0.025 on average, and 0.01 at 1 / sqrt(2.5).
    assert rate.pooled([1.0, 0.5]) == pytest.approx(0.4**0.5)


def test_the_kl_of_log_ratios() -> None:
    ratios_N = torch.tensor([0.0, math.log(2), -math.log(2)])
    # (0 + (2 - 1 - 0.6931) + (0.5 - 1 + 0.6931)) / 3
    assert rate.divergence(ratios_N) == pytest.approx(0.5 / 3)


@pytest.mark.parametrize("update", FEW)
def test_finding_the_rate_leaves_no_trace(small: TrainConfig, tmp_path: Path, update: str) -> None:
    """A run that finds its rate is, to the digit, the run that is given it."""
    assert_equals_the_given_run(replace(small, update=update), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("update", [text for text in FIRST if text not in FEW])
def test_no_update_is_left_changed(small: TrainConfig, tmp_path: Path, update: str) -> None:
    assert_equals_the_given_run(replace(small, update=update, steps=3), tmp_path)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_it_leaves_no_trace_in_bf16(small: TrainConfig, tmp_path: Path, rounding: Any) -> None:
    compute = replace(small.compute, dtype="bf16", rounding=rounding)
    assert_equals_the_given_run(replace(small, compute=compute), tmp_path)


def test_it_leaves_no_trace_under_a_kl_term_and_two_updates(
    small: TrainConfig, tmp_path: Path
) -> None:
    batch = replace(small.batch, updates_per_rollout=2)
    assert_equals_the_given_run(replace(small, batch=batch, objective="grpo(kl=0.1)"), tmp_path)


def assert_equals_the_given_run(config: TrainConfig, tmp_path: Path) -> None:
    auto, given = tmp_path / "auto", tmp_path / "given"
    train(at(config, auto, None))
    found = rate_in(auto)
    train(at(config, given, found))
    for one, other in zip(metrics_of(auto), metrics_of(given), strict=True):
        assert one == other
    assert tensors_of(auto) == tensors_of(given)
    chosen = json.loads((auto / "chosen.json").read_text())["learning_rate"]
    assert chosen["value"] == found
    assert "0.01 nats a token" in chosen["why"]


def test_the_first_step_moves_the_other_problems_by_the_kl(small: TrainConfig) -> None:
    """Against a step by hand and the whole distributions, which the rule does not look at."""
    config = replace(small, batch=Steps(prompts_per_step=24, group_size=4), update="last(1)")
    session = prepare(config)
    groups = sample_groups(session, 0)
    _, rewards_PG = score(session.task, session.reward, groups, [])
    batch = make_batch(session.objective, groups, rewards_PG)
    (given, held), _ = rate.halves(groups, batch)
    with rate.FirstSteps(session, batch, (given, held)) as tried:
        found, _ = tried.rate(1e-3, 0.01)
    assert {row.group % 2 for row in given} == {0}
    assert {row.group for row in held} == set(range(1, 24, 2))
    scorer, trained = session.policy.scorer, dict(session.prepared.active)
    with torch.no_grad():
        pack = scorer.pack(held)
        before_NV = scorer.logits(scorer.hidden(pack, scorer.trunk(pack))).log_softmax(-1)
    # With ratios of 1 GRPO's gradient is that of sum w A log p.
    weights = torch.tensor([1 / len(row.tokens) for row in given for _ in row.tokens])
    advantages = torch.tensor([a for row in given for a in row.advantages])
    policy_N, _ = logprobs(scorer, given, config.sampling)
    (weights * advantages * policy_N).sum().backward()
    with torch.no_grad():
        for tensor in trained.values():
            assert tensor.grad is not None
            tensor += found * tensor.grad.sign()
        after_NV = scorer.logits(scorer.hidden(pack, scorer.trunk(pack))).log_softmax(-1)
    kl = float((before_NV.exp() * (before_NV - after_NV)).sum(-1).mean())
    assert kl == pytest.approx(0.01, rel=0.3)


def test_a_rollout_that_is_too_small_gets_the_rate_of_the_table(
    bare: TrainConfig, tmp_path: Path
) -> None:
    notes = Notes()
    train(at(bare, tmp_path / "run", None), notes)
    numbers = prepare(bare).active_parameters
    assert rate_in(tmp_path / "run") == pytest.approx(0.12 / math.sqrt(numbers), rel=5e-3)
    assert any("too small to try" in text for text in notes.texts)


def test_the_table_of_rates() -> None:
    assert start_rate(parse("full"), 10_000) == pytest.approx(0.0012)
    assert start_rate(parse("last(2)"), 10_000) == pytest.approx(0.003)
    assert start_rate(parse("lora(rank=8)"), 10_000) == pytest.approx(0.003)
    assert start_rate(parse("sgd"), 10_000) == pytest.approx(0.24)
    assert start_rate(parse("sgd @ lora"), 10_000) == pytest.approx(0.6)


def test_without_a_signal_nothing_is_trained_and_no_rate_is_found(
    small: TrainConfig, tmp_path: Path
) -> None:
    train(at(replace(small, reward="accuracy"), tmp_path / "run", None))
    assert "learning_rate" not in read_toml(tmp_path / "run" / "config.toml")["optimizer"]
    assert "learning_rate" not in json.loads((tmp_path / "run" / "chosen.json").read_text())


@pytest.mark.parametrize("stop", [0, 1])
def test_a_resumed_run_keeps_its_rate(small: TrainConfig, tmp_path: Path, stop: int) -> None:
    config = replace(small, steps=3, records=replace(small.records, checkpoint_every=1))
    whole, cut = at(config, tmp_path / "whole", None), at(config, tmp_path / "cut", None)
    train(whole)
    with pytest.raises(Crash):
        train(cut, Notes(stop))
    train(cut, resume=True)
    assert rate_in(tmp_path / "cut") == rate_in(tmp_path / "whole")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "whole")


@pytest.mark.parametrize("late", ["sparse(keep=0.1, by=fisher, warmup=2)", "full"])
def test_a_rate_that_was_found_late_is_found_there_again(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Before any checkpoint: steps that held, or had no signal and a KL term, stay without a rate."""
    whole, cut = (at(replace(small, steps=3), tmp_path / n, None) for n in ("whole", "cut"))
    rare = replace(small.records, checkpoint_every=0)
    more: Any = {"update": late, "objective": "grpo(kl=0.1)", "records": rare}
    whole, cut = (replace(config, **more) for config in (whole, cut))

    def silent(session: Session, run: Any, step: int, observer: Any) -> dict[str, float]:
        kind = "random" if step else "accuracy"
        session.reward = parse_reward(kind) if late == "full" else session.reward
        return run_step(session, run, step, observer)

    monkeypatch.setattr(loop, "run_step", silent)
    train(whole)
    last = len(metrics_of(tmp_path / "whole")) - 1
    with pytest.raises(Crash):
        train(cut, Notes(last))
    train(cut, resume=True)
    assert not metrics_of(tmp_path / "cut")[0].get("policy/learning_rate")
    assert rate_in(tmp_path / "cut") == rate_in(tmp_path / "whole")
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "whole")


@pytest.mark.parametrize(("factor", "word"), [(100, "far above"), (0.01, "far below"), (1, "")])
def test_a_given_rate_that_is_far_off_gets_a_warning(
    small: TrainConfig, tmp_path: Path, factor: float, word: str
) -> None:
    train(at(small, tmp_path / "auto", None))
    notes = Notes()
    one = replace(small, steps=1)
    train(at(one, tmp_path / "given", factor * rate_in(tmp_path / "auto")), notes)
    told = [text for text in notes.texts if "nats a token" in text]
    assert bool(told) == bool(word)
    assert all(word in text and "--learning-rate auto" in text for text in told)


def test_a_probe_compares_updates_and_changes_nothing(small: TrainConfig) -> None:
    config = replace(small, batch=Steps(prompts_per_step=16, group_size=4))
    made = probe(config, ["full", "last(1)"], lambda text: None)
    assert (made.problems, len(made.updates)) == (64, 2)
    again = {u.update: u for u in probe(config, ["last(1)"], lambda text: None).updates}
    by_name = {u.update: u for u in made.updates}
    assert again["last(1)"].rates == by_name["last(1)"].rates
    for found in made.updates:
        assert found.rates["0.03"] / found.rates["0.01"] == pytest.approx(math.sqrt(3))
        assert found.low <= found.gains["0.1"] <= found.high
    assert by_name["full"].rates["0.01"] < by_name["last(1)"].rates["0.01"]
    assert made.updates[0].verdict == "the most gain"
    assert made.updates[0].update in made.text().splitlines()[1]


def test_a_probe_without_a_signal_is_refused(small: TrainConfig) -> None:
    config = replace(small, reward="accuracy", batch=Steps(prompts_per_step=64, group_size=2))
    with pytest.raises(UserError, match="none has a signal"):
        probe(config, ["full"], lambda text: None)


def test_a_probe_needs_a_signal_in_both_halves(
    small: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one half alone nothing can be held out, nor can the other give a gradient."""
    from modicum.training import probe as module

    def one_group(*_: Any) -> Any:
        rewards_PG = torch.zeros(16, 4)
        rewards_PG[2, 1] = float(not made)
        made.append(1)
        return [], rewards_PG

    made: list[int] = []
    monkeypatch.setattr(module, "score", one_group)
    config = replace(small, batch=Steps(prompts_per_step=16, group_size=4))
    with pytest.raises(UserError, match=r"of 128 groups 1 has a signal .* both halves"):
        probe(config, ["full"], lambda text: None)


def test_a_probe_tries_the_turns_of_a_schedule(small: TrainConfig) -> None:
    """No layer trains alone at more than its own rate."""
    config = replace(small, batch=Steps(prompts_per_step=16, group_size=4))
    names = ["badam(every=1)", "layers(0)", "layers(1)", "layers(2)"]
    found = {u.update: u.rates["0.01"] for u in probe(config, names, lambda text: None).updates}
    assert found["badam(every=1)"] <= 1.05 * min(found[name] for name in names[1:])


def test_the_command(small: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", small.model, "--reward", "digits", "--max-tokens", "8", "--json"]
    updates = ["--updates", "last(1)", "--prompts-per-step", "64", "--group-size", "2"]
    assert cli.run(["probe", *options, *updates]) == 0
    (found,) = json.loads(capsys.readouterr().out)["updates"]
    assert (found["update"], found["verdict"]) == ("last(1)", "the most gain")
    assert set(found["rates"]) == {"0.003", "0.01", "0.03", "0.1"}


def test_what_the_command_is_to_probe(small: TrainConfig, fails: Any, capsys: Any) -> None:
    assert fails("probe", "--updates", " ; ") == "error: --updates ' ; ' names no update"
    both = fails("probe", "--updates", "full", "--update", "last(1)")
    assert both == "error: --update and --updates exclude each other"
    options = ["--model", small.model, "--reward", "digits", "--max-tokens", "8", "--json"]
    options += ["--prompts-per-step", "64", "--group-size", "2"]
    for asked in (["--update", "last(1)"], ["--updates", "last(1); last(1)"]):
        assert cli.run(["probe", *options, *asked]) == 0
        (found,) = json.loads(capsys.readouterr().out)["updates"]
        assert found["update"] == "last(1)"


def test_a_study_may_try_the_two_rates_of_the_probe(tmp_path: Path) -> None:
    from modicum.study.design import parse as study_of

    tables = {"question": "?", "arms": ["full", "last(1)"], "budget": {"amount": 10}}
    study = study_of({**tables, "tuning": {"probe": True}}, "here")
    tries = cells.tries(study, PlannedArm("full", {}), 0.02, 1.0)
    assert [entry.rate for entry in tries] == [0.02, 0.035]
    with pytest.raises(UserError, match="probe"):
        Tuning(probe=True, factors=(1.0, 2.0))


def test_auto_is_a_word_for_it() -> None:
    assert Optimizer(learning_rate="auto").learning_rate is None  # type: ignore[arg-type]


def test_the_check_in_the_docs_runs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "rates.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(code, {})
