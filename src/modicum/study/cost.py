"""What a study will cost: runs and tokens from its design, time from a short probe of each arm.

    seconds = (steps or tokens of a run / those of a probe's step) x seconds of a step
              + seconds of the evaluation

summed over all runs and divided by the jobs. Probes run as the study will, so many at a time.
A probe's completions are the base's: where training makes them longer, a step takes longer.
"""

import statistics
from dataclasses import dataclass

from modicum.report.numbers import duration
from modicum.runs import read_lines, read_object
from modicum.study import tuning
from modicum.study.cell import RESULT, SECONDS
from modicum.study.cells import StudyBench, base_cell, probe_cells
from modicum.study.design import Study
from modicum.types import UserError

COUNTED = {"tokens": "generated_tokens"}  # what a run calls what it spent of a unit
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
    study, base, cells = bench.study, base_cell(bench, "test"), probe_cells(bench)
    bench.evaluate(base)
    bench.run(cells, retry_failed=True)
    more = float(read_object(base.folder / SECONDS)["seconds"]) + START_SECONDS
    tries, unit, amount = tries_of(study), study.budget.unit, study.budget.amount
    steps: dict[str, float] = {}
    seconds = 0.0
    for arm, cell in zip(bench.arms, cells, strict=True):
        if cell.failure:
            raise UserError(f"arm {arm.name} cannot run: {cell.failure}")
        lines, result = read_lines(cell.folder / "metrics.jsonl"), read_object(cell.folder / RESULT)
        # The first step also loads and compiles what later ones have.
        step = statistics.median(line["time/step_seconds"] for line in lines[1:] or lines)
        spent = step if unit == "seconds" else result[COUNTED.get(unit, unit)] / result["steps"]
        number = amount / max(spent, 1e-9)
        whole = step * (number if unit == "steps" else min(study.budget.max_steps, number))
        seconds += len(study.seeds) * (whole + more)
        seconds += 0.0 if arm.placebo else sum(share * whole + more for share in tries)
        steps[arm.name] = step
    tuned = sum(not arm.placebo for arm in bench.arms)
    final = len(bench.arms) * len(study.seeds)
    tokens = amount * (final + tuned * sum(tries)) if unit == "tokens" else None
    return CostEstimate(tuned * len(tries), final, tokens, seconds / bench.launcher.jobs, steps)


def tries_of(study: Study) -> list[float]:
    """The share of the budget of every try of one arm."""
    count = len(study.tuning.factors)
    rounds = enumerate(tuning.shares(study) if count > 1 else [])
    return [share for number, share in rounds for _ in range(-(-count // 2**number))]
