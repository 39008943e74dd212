"""scripts/simulate.py: populations of known truth, and that the statistics keep their word."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modicum.study.estimate import spread

SCRIPTS = Path(__file__).parents[1] / "scripts"
_spec = importlib.util.spec_from_file_location("simulate", SCRIPTS / "simulate.py")
assert _spec is not None and _spec.loader is not None
module: Any = importlib.util.module_from_spec(_spec)
sys.modules["simulate"] = module  # its processes look for what they run by name
_spec.loader.exec_module(module)
SCENARIOS, Scenario, draw, simulate = (
    module.SCENARIOS,
    module.Scenario,
    module.draw,
    module.simulate,
)
percentile, seed_means, two_level = module.percentile, module.seed_means, module.two_level
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("true", [0.0, -0.025])
def test_the_true_difference_is_the_one_asked_for(scenario: Any, true: float) -> None:
    rng = np.random.default_rng(0)
    found, kept = [], []
    for _ in range(300):
        scores = draw(scenario, 4, true, rng)
        found.append(float((scores.arm_SI - scores.control_SI).mean()))
        kept.append([scores.arm_SI.mean(), scores.control_SI.mean(), scores.base_I.mean()])
    error = np.std(found) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(true, abs=3.5 * error)
    arm, control, base = np.mean(kept, axis=0)
    assert control == pytest.approx(scenario.accuracy, abs=0.01)
    assert (arm - base) / (control - base) == pytest.approx(scores.retention, abs=0.05)


def test_seeds_and_problems_vary_as_asked() -> None:
    scenario = Scenario("", seed_sd=0.03, problem_sd=0.2, rest_sd=0.0, num_problems=4000)
    found = [draw(scenario, 40, 0.0, np.random.default_rng(n)) for n in range(3)]
    parts = [spread(scores.arm_SI - scores.control_SI).components for scores in found]
    assert np.mean([part.seed for part in parts]) ** 0.5 == pytest.approx(0.03, rel=0.15)
    assert np.mean([part.problem for part in parts]) ** 0.5 == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("name", "seeds", "studies"), [("both vary", 3, 600), ("problems vary", 5, 600), ("usual", 10, 160)]
)  # fmt: skip
def test_intervals_hold_the_truth_and_false_claims_are_rare(
    name: str, seeds: int, studies: int
) -> None:
    found = simulate(BY_NAME[name], seeds, studies, np.random.default_rng(1))
    # Two standard errors of a share of 5 % in so many studies.
    slack = 2 * (0.05 * 0.95 / studies) ** 0.5
    assert found.coverage95 > 0.95 - slack
    assert found.coverage90 > 0.90 - 1.4 * slack
    assert found.false_superior < 0.025 + slack
    assert found.false_not_worse < 0.05 + slack
    assert found.retention > 0.95 - slack
    assert found.not_worse > found.false_not_worse


def test_the_same_bounds_miss_for_seed_means_alone() -> None:
    found = simulate(BY_NAME["problems vary"], 5, 150, np.random.default_rng(1), seed_means)
    assert found.coverage95 < 0.85 and found.false_not_worse > 0.07


def test_the_percentile_bootstrap_is_too_wide_where_nothing_varies() -> None:
    widths = [
        simulate(BY_NAME["no effects"], 10, 10, np.random.default_rng(2), method).width
        for method in (two_level, percentile)
    ]
    assert widths[1] > 1.3 * widths[0]


def test_the_mean_of_a_resample_varies_as_owen_says() -> None:
    table_SI = draw(BY_NAME["both vary"], 6, 0.0, np.random.default_rng(0)).arm_SI[:, :20]
    centred = table_SI - table_SI.mean()
    rows, columns = centred.mean(1), centred.mean(0)
    rest = centred - rows[:, None] - columns
    exact = rows.var() / 6 + columns.var() / 20 + rest.var() / 120
    found = module.means(table_SI, np.random.default_rng(0), 20_000)
    assert found.var() == pytest.approx(exact, rel=0.05)


def test_collapsing_seeds_are_beyond_any_interval() -> None:
    # Three seeds miss the one in five half of the time; nothing can be seen then.
    found = simulate(BY_NAME["one in five collapses"], 3, 150, np.random.default_rng(3))
    assert 0.35 < found.coverage95 < 0.7


def test_the_command_prints_a_table_that_jobs_do_not_change(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCENARIOS", SCENARIOS[:2])
    monkeypatch.syspath_prepend(SCRIPTS)
    module.main(["--studies", "3", "--counts", "3", "6"])
    once = capsys.readouterr().out
    assert once.count("\n") == 2 + 4 and once.startswith("| scenario | seeds | 95 % holds |")
    module.main(["--studies", "3", "--counts", "3", "6", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["scenario"], row["seeds"]) for row in rows][1] == ("usual", 6)
    module.main(["--studies", "3", "--counts", "3", "6", "--jobs", "2"])
    assert capsys.readouterr().out == once


def test_the_command_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        module.main(["--studies", "0"])
    assert "start at 1" in capsys.readouterr().err
