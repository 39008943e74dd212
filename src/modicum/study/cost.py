"""What a study will cost: runs and tokens from its design, time from a short probe of each arm.

    seconds = (steps or tokens of a run / those of a probe's step) x seconds of a step
              + seconds of the evaluation

summed over all runs and divided by the jobs. Probes run as the study will, so many at a time.
A probe's completions are the base's: where training makes them longer, a step takes longer.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modicum.report.numbers import duration
from modicum.runs import read_lines, read_object
from modicum.study import tuning
from modicum.study.cell import SECONDS
from modicum.study.cells import StudyBench, base_cell, probe_cells
from modicum.study.design import Study
from modicum.types import UserError

START_SECONDS = 1.5  # of a process and its model


@dataclass(frozen=True)
class CostEstimate:
    """Of a whole study, before it is run."""

    tuning_runs: int
    final_runs: int
    tokens: float | None
    """Generated in training, all runs; None when the budget is not of tokens."""
    seconds: float
    """On this machine with these jobs."""
    step_seconds: dict[str, float]
    """By arm."""

    def text(self) -> str:
        """For a reader."""
        tokens = "" if self.tokens is None else f", {self.tokens:,.0f} generated tokens"
        return (
            f"{self.tuning_runs} tuning runs and {self.final_runs} final runs{tokens}; about"
            f" {duration(self.seconds)} on this machine"
        )


def measure(bench: StudyBench) -> CostEstimate:
    """Run what the estimate needs (the base on the test split, a probe of each arm)."""
    base = base_cell(bench, "test")
    bench.evaluate(base)
    cells = probe_cells(bench)
    bench.run(cells, retry_failed=True)
    steps: dict[str, float] = {}
    amounts: dict[str, float] = {}
    for arm, cell in zip(bench.arms, cells, strict=True):
        if cell.failure:
            raise UserError(f"arm {arm.name} cannot run: {cell.failure}")
        lines = read_lines(cell.folder / "metrics.jsonl")
        # The first step also loads and compiles what later ones have.
        later = lines[1:] or lines
        steps[arm.name] = statistics.median(line["time/step_seconds"] for line in later)
        amounts[arm.name] = _spent(bench.study, lines, steps[arm.name])
    return estimate(bench, steps, amounts, float(read_object(base.folder / SECONDS)["seconds"]))


def estimate(
    bench: StudyBench, steps: dict[str, float], amounts: dict[str, float], evaluating: float
) -> CostEstimate:
    """The cost from seconds a step, budget spent a step, and seconds of an evaluation."""
    study = bench.study
    tuned = [arm for arm in bench.arms if not arm.placebo]
    tries = tries_of(study)
    seconds = 0.0
    for arm in bench.arms:
        number = min(study.budget.max_steps, study.budget.amount / max(amounts[arm.name], 1e-9))
        if study.budget.unit == "steps":
            number = study.budget.amount
        whole = number * steps[arm.name]
        seconds += len(study.seeds) * (whole + evaluating + START_SECONDS)
        if arm in tuned:
            seconds += sum(share * whole + evaluating + START_SECONDS for share in tries)
    final = len(bench.arms) * len(study.seeds)
    tokens = None
    if study.budget.unit == "tokens":
        tokens = study.budget.amount * (final + len(tuned) * sum(tries))
    return CostEstimate(
        len(tuned) * len(tries), final, tokens, seconds / bench.launcher.jobs, steps
    )


def tries_of(study: Study) -> list[float]:
    """The share of the budget of every try of one arm."""
    count = len(study.tuning.factors)
    rounds = enumerate(tuning.shares(study) if count > 1 else [])
    return [share for number, share in rounds for _ in range(-(-count // 2**number))]


def _spent(study: Study, lines: Sequence[dict[str, Any]], step_seconds: float) -> float:
    """What a step takes of the budget, by the probe."""
    of_unit = {
        "tokens": lines[-1]["tokens/generated"] / len(lines),
        "steps": 1.0,
        "seconds": step_seconds,
        "flops": statistics.fmean(
            line["flops/sampling"] + line["flops/training"] for line in lines
        ),
    }
    return float(of_unit[study.budget.unit])
