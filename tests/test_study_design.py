"""study.toml: what it may say, the arms it makes, and what may change once it has begun."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modicum.results import TuningRun
from modicum.study import cells, design
from modicum.study.design import Study
from modicum.study.launch import locked
from modicum.study.run import begin
from modicum.types import UserError

TEXT = """
question = "Does the last layer suffice?"
arms = ["last(1)", "full", "lora(rank=8)"]
seeds = [3, 5]
margin = 0.03
[budget]
amount = 5000
[placebo]
random_reward = true
format_only = true
[config]
task = "arithmetic(terms=6)"
[config.batch]
prompts_per_step = 8
[arm."last(1)"]
objective = "dr_grpo"
"""


def made(text: str = TEXT, **changes: Any) -> Study:
    return replace(design.parse(tomllib.loads(text), "study.toml"), **changes)


def test_the_control_comes_first_and_placebos_last() -> None:
    arms = design.arms(made())
    assert [arm.name for arm in arms] == [
        "full", "last(1)", "lora(rank=8)", "random reward", "format only",
    ]  # fmt: skip
    assert [arm.placebo for arm in arms] == [False, False, False, True, True]
    assert arms[1].settings == {"update": "last(1)", "objective": "dr_grpo"}
    assert arms[3].settings == {"update": "full", "reward": "random"}
    assert arms[4].settings == {"update": "full", "reward": "format(style='tags')"}


def test_an_arm_is_the_common_settings_and_its_own(tmp_path: Path) -> None:
    study = made()
    config = design.config(study, design.arms(study)[1], 5, tmp_path / "x", 1e-3, share=0.5)
    assert (config.update, config.objective, config.task) == (
        "last(1)", "dr_grpo", "arithmetic(terms=6)",
    )  # fmt: skip
    assert config.batch.prompts_per_step == 8
    assert (config.seed, config.optimizer.learning_rate) == (5, 1e-3)
    assert (config.budget.budget, config.budget.budget_unit) == (2500, "tokens")
    assert config.steps == study.budget.max_steps


def test_a_budget_of_steps_is_the_number_of_steps(tmp_path: Path) -> None:
    study = made(TEXT.replace("amount = 5000", "amount = 40\nunit = 'steps'"))
    config = design.config(study, design.arms(study)[0], 3, tmp_path, None, share=0.25)
    assert (config.steps, config.budget.budget) == (10, 0)


def test_other_settings_can_be_compared() -> None:
    text = """
question = "Does the loss matter?"
vary = "objective"
control = "grpo"
arms = ["grpo", "dapo", "long"]
budget = {amount = 10, unit = "steps"}
[arm.long]
objective = "grpo"
steps_are = "no setting"
"""
    with pytest.raises(UserError, match=r"arm long: unknown key 'steps_are'"):
        made(text)
    arms = design.arms(
        made(text.replace('steps_are = "no setting"', "sampling = {max_tokens = 99}"))
    )
    assert [arm.settings.get("objective") for arm in arms] == ["grpo", "dapo", "grpo"]


def test_the_text_of_a_study_gives_it_back() -> None:
    study = made(threads=2)
    assert design.parse(tomllib.loads(design.text(study)), "again") == study


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("margin = 0.03", "margin = 0", "margin must be above 0"),
        ("margin", "margins", "unknown key 'margins'; did you mean 'margin'"),
        ('"full", ', "", "control: 'full' is not among the arms"),
        ("[3, 5]", "[3, 3]", "seeds holds an entry twice"),
        ("[3, 5]", "[1000]", "the tuning seed 1000 is one of the seeds"),
        ("[3, 5]", '["a"]', "seeds must be a whole number"),
        ("amount = 5000", "amount = 0", "amount must be above 0"),
        ("amount = 5000", "unit = 'words'", "unit is 'words'"),
        ('"full", ', '"full", "ful", ', "arm ful"),
        ("[config]", "[config]\nseed = 4", "config: seed is the study's to say"),
        ("[config]", "[config]\nstep = 4", "unknown key 'step'"),
        ("seeds = ", "lr = 1\nseeds = ", "'lr'; did you mean learning_rate in .config.optimizer.?"),
        ("seeds = ", "task = 'x'\nseeds = ", "unknown key 'task'; it belongs to .config."),
        ("[config]", "[config]\ntop_p = 1", "'top_p'; it belongs to .config.sampling."),
        ("[config]", "[config]\nnum_generations = 4", "did you mean group_size in .config.batch."),
        ('[arm."last(1)"]', '[arm."last(2)"]', r"\[arm.'last\(2\)'\] is not in arms"),
        ('"full", ', '"full", "last( 1)", ', "look alike"),
        ('question = "Does the last layer suffice?"', "", "question is missing"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(UserError, match=message):
        study = made(TEXT.replace(old, new, 1))
        check_updates(study)


def check_updates(study: Study) -> None:
    """The expressions, which the command checks before it begins."""
    from modicum.study.cells import check_arms

    check_arms(study)


def test_what_was_fixed_before_running_stays(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    first = begin(made(), folder, threads=1)
    assert first.threads >= 1
    assert begin(made(), folder, threads=1) == first
    (folder / "cells" / "tune").mkdir(parents=True)
    with pytest.raises(UserError, match=r"other settings \(margin = 0.03\)"):
        begin(made(margin=0.05), folder, threads=1)
    with pytest.raises(UserError, match=r"has arms that the file has not: lora\(rank=8\)"):
        begin(made(arms=("full", "last(1)")), folder, threads=1)
    more = made(arms=(*made().arms, "last(2)"), seeds=(3, 5, 7))
    assert begin(more, folder, threads=1).seeds == (3, 5, 7)
    with pytest.raises(UserError, match="has seeds that the file has not: 7"):
        begin(made(arms=more.arms), folder, threads=1)


def test_until_an_arm_is_judged_another_text_starts_anew(tmp_path: Path) -> None:
    begin(made(), tmp_path, threads=1)
    probe = tmp_path / "cells" / "probe" / "full"
    probe.mkdir(parents=True)
    assert begin(made(threads=1), tmp_path, threads=1).threads == 1
    probe.mkdir(parents=True, exist_ok=True)
    begin(made(threads=1), tmp_path, threads=1)
    assert probe.exists()
    changed = begin(made(threads=1, arms=("full", "last(1)"), margin=0.05), tmp_path, threads=1)
    assert design.read(tmp_path / "study.toml") == changed
    assert changed.margin == 0.05
    assert not probe.exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for what in ("study", "scan"):
        with pytest.raises(UserError, match=f"is there and is no {what}"), locked(tmp_path, what):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


# Tuning ------------------------------------------------------------------------------------


def rated(tries: list[TuningRun], accuracies: dict[float, float]) -> list[TuningRun]:
    return [replace(entry, accuracy=accuracies[entry.rate]) for entry in tries]


def test_the_best_rate_wins_and_an_edge_is_flagged() -> None:
    study = made(tuning=design.Tuning(factors=(0.1, 1.0, 10.0)))
    arm = design.arms(study)[0]
    tries = cells.tries(study, arm, 1.0, 1.0)
    assert [entry.rate for entry in tries] == [0.1, 1.0, 10.0]
    middle = cells.choose(study, 1.0, [rated(tries, {0.1: 0.3, 1.0: 0.5, 10.0: 0.2})])
    assert (middle.learning_rate, middle.rate_at_edge, len(middle.tries)) == (1.0, False, 3)
    assert cells.choose(study, 1.0, [rated(tries, {0.1: 0.3, 1.0: 0.5, 10.0: 0.6})]).rate_at_edge
    two = rated(tries[:2], {0.1: 0.3, 1.0: 0.5})
    assert not cells.choose(study, 1.0, [two]).rate_at_edge, "one of two always is the edge"
    # Of equal ones the lower; a failed one never.
    level = cells.choose(study, 1.0, [rated(tries, {0.1: 0.5, 1.0: 0.5, 10.0: 0.5})])
    assert level.learning_rate == 0.1
    broken = [*rated(tries[:1], {0.1: 0.0}), *tries[1:]]
    assert cells.choose(study, 1.0, [broken]).learning_rate == 0.1


def test_halving_gives_the_better_half_twice_the_budget() -> None:
    study = made(tuning=design.Tuning(factors=(1.0, 2.0, 4.0, 8.0), halving=True))
    arm = design.arms(study)[0]
    assert cells.shares(study) == [0.25, 0.5, 1.0]
    first = rated(cells.tries(study, arm, 1.0, 0.25), {1: 0.1, 2: 0.4, 4: 0.3, 8: 0.0})
    second = cells.tries(study, arm, 1.0, 0.5, first)
    assert [(entry.rate, entry.share) for entry in second] == [(2.0, 0.5), (4.0, 0.5)]
    third = cells.tries(study, arm, 1.0, 1.0, rated(second, {2: 0.4, 4: 0.6}))
    assert [(entry.rate, entry.share) for entry in third] == [(4.0, 1.0)]
    assert len({entry.folder for entry in (*first, *second, *third)}) == 7
    assert cells.tries_of(study) == [0.25] * 4 + [0.5] * 2 + [1.0]


def test_one_factor_tunes_nothing() -> None:
    study = made(tuning=design.Tuning(factors=(3.0,)))
    assert cells.tries(study, design.arms(study)[0], 0.1, 1.0) == []
    assert cells.choose(study, 0.1, [[]]).learning_rate == pytest.approx(0.3)
    assert cells.tries_of(study) == []


def test_placebos_are_not_tuned() -> None:
    study = made()
    placebo = design.arms(study)[-1]
    assert cells.tries(study, placebo, 1.0, 1.0) == []


TWINS = TEXT.replace(
    'arms = ["last(1)", "full", "lora(rank=8)"]', 'vary = "objective"\narms = ARMS'
)
TWINS = TWINS.split('[arm."last(1)"]')[0].replace("question", 'control = "grpo"\nquestion')

ELSEWHERE = "\n[config.compute]\nsampler = 'vllm'\n"
FILTER = "[arm.'left out']\nobjective = 'grpo'\n[arm.'left out'.batch]\ngroups = 'filter'\n"


@pytest.mark.parametrize(
    ("arms", "more", "same"),
    [
        (["grpo", "gspo"], "", "grpo and gspo"),
        (["grpo", "dapo", "cispo"], "", "dapo and cispo"),
        (["grpo", "grpo(clip=0.1)"], "", "grpo and grpo(clip=0.1)"),
        (["grpo", "rloo", "dr_grpo"], "[config.optimizer]\nmax_grad_norm = 0", "rloo and dr_grpo"),
        (["grpo", "rloo", "dr_grpo"], "", ""),
        (["grpo", "gspo"], "updates_per_rollout = 2", ""),
        (["grpo", "gspo"], "correction = 'none'" + ELSEWHERE, ""),  # the first ratio is not 1
        (["grpo", "gspo"], "correction = 'token'" + ELSEWHERE, "grpo and gspo"),
        (["grpo", "left out"], FILTER, "grpo and left out"),
        (["grpo", "left out"], FILTER + "denominators = 'kept'", ""),
        (["grpo", "gspo"], "[arm.gspo]\ntask = 'countdown'\nobjective = 'gspo'", ""),
    ],
)
def test_two_arms_that_are_one_method_are_refused_unless_that_is_what_is_asked(
    arms: list[str], more: str, same: str
) -> None:
    """`null_check = true` measures the noise between two names of one method."""
    from modicum.study.cells import check_arms

    study = made(TWINS.replace("ARMS", str(arms)) + more)
    if same:
        with pytest.raises(UserError, match=re.escape(f"{same} are the same method here")):
            check_arms(study)
    check_arms(replace(study, null_check=bool(same)))
    lines = design.fixed(study, study.arms)
    assert lines == design.fixed(replace(study, null_check=True), study.arms), (
        "it may be said later"
    )


def test_an_arm_with_a_correction_that_its_sampler_does_not_need_is_refused() -> None:
    from modicum.study.cells import check_arms

    arms = TWINS.replace("ARMS", str(["grpo", "weighed"]))
    arm = "[arm.weighed]\nobjective = 'grpo'\n[arm.weighed.batch]\ncorrection = 'token'\n"
    with pytest.raises(
        UserError, match="arm weighed: correction token: the sampler of this process"
    ):
        check_arms(made(arms + arm))


def test_all_arms_have_the_probe_set_where_one_has_a_curriculum() -> None:
    """Training reward says nothing between curricula."""
    tables = {"question": "?", "control": "uniform", "vary": "curriculum", "budget": {"amount": 9}}
    for arms, config, wanted in (
        (["uniform", "bandit"], {}, [10, 10]),
        (["uniform", "bandit"], {"evaluation": {"probe_every": 3}}, [3, 3]),
        (["uniform", "other"], {}, [None, None]),
    ):
        extra = {"other": {"curriculum": "uniform", "seed": 1}} if "other" in arms else {}
        made = design.parse({**tables, "arms": arms, "config": config, "arm": extra}, "study")
        found = [design.config(made, arm, 0, Path(), None) for arm in design.arms(made)]
        assert [config.evaluation.probe_every for config in found] == wanted
