"""The cells of a study (docs/study.md has their folders), and what all of them will cost.

Each arm has the same number of tries of its learning rate, judged on the tune split. With `halving`
(Jamieson and Talwalkar 2016, arXiv 1502.07943) every round starts from the base, since a run's
length may enter its schedule."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from modicum.config import Held, read_toml
from modicum.parts import correction_of, first_updates, require_group
from modicum.report.words import say
from modicum.results import TuningRun
from modicum.runs import Run, read_lines, read_object
from modicum.study import design
from modicum.study.cell import RESULT, SECONDS, Cell, failure
from modicum.study.design import PlannedArm, Study
from modicum.study.launch import Bench
from modicum.types import Frozen, UserError

PROBE_STEPS = 4
COUNTED = {"tokens": "generated_tokens"}  # what a run calls what it spent of a unit
START_SECONDS = 1.5  # of a process and its model


class Choice(Frozen):
    """The rate that an arm trains with, and how it was found, as `tuning.json` holds it."""

    learning_rate: float = 0.0
    rate_at_edge: bool = False  # the best of three or more is the lowest or highest
    tries: tuple[TuningRun, ...] = ()


def shares(study: Study) -> list[float]:
    """The share of the budget in each round: one round without halving."""
    tuning = study.tuning
    rounds = 1 + math.floor(math.log2(len(tuning.factors))) if tuning.halving else 1
    return [tuning.share / 2**left for left in range(rounds - 1, -1, -1)]


def tries(
    study: Study, arm: PlannedArm, default: float, share: float, before: Sequence[TuningRun] = ()
) -> list[TuningRun]:
    """A round with a share of the budget: of the default rate times every factor, or of the better
    half of the round before; none where there is nothing to tune."""
    if arm.placebo or len(study.tuning.factors) < 2:
        return []
    best = sorted(before, key=_rank, reverse=True)[: math.ceil(len(before) / 2)]
    rates = [entry.rate for entry in best] or [default * f for f in study.tuning.factors]
    part = "" if share == 1 else f"-share-{share:.3g}"
    places = ((rate, f"cells/tune/{arm.slug}/rate-{rate:.2e}{part}") for rate in sorted(rates))
    return [TuningRun(rate, share, place) for rate, place in places]


def choose(study: Study, default: float, rounds: Sequence[Sequence[TuningRun]]) -> Choice:
    """The best try of the last round; without tries the one factor of the default."""
    if not rounds or not rounds[0]:
        factors = study.tuning.factors
        return Choice(default * (factors[0] if len(factors) == 1 else 1))
    tries = tuple(entry for done in rounds for entry in done)
    best = max(rounds[-1], key=_rank)
    rates = [entry.rate for entry in rounds[0]]
    return Choice(best.rate, len(rates) > 2 and best.rate in (min(rates), max(rates)), tries)


def _rank(entry: TuningRun) -> tuple[bool, float, float]:
    """Higher is better; of equal ones the lower rate."""
    return entry.accuracy is not None, entry.accuracy or 0.0, -entry.rate


def default_rate(bench: Bench, arm: PlannedArm) -> float:
    """The learning rate that the settings of an arm name, or the one that its probe has found."""
    from modicum import recipes, updates

    config = bench.config(arm, 0, "", None)
    if config.optimizer.learning_rate is not None:
        return config.optimizer.learning_rate
    probe = bench.folder / "cells" / "probe" / arm.slug
    found = read_toml(probe / "config.toml").get("optimizer", {}).get("learning_rate")
    trained = read_object(probe / RESULT)["trainable_parameters"]
    return found or recipes.start_rate(updates.parse(config.update), trained)


def base_cell(bench: Bench, split: str) -> Cell:
    """The evaluation of the untrained model on a split."""
    config = bench.config(bench.arms[0], 0, f"cells/base-{split}", None)
    return Cell(f"base on the {split} split", bench.held(config, split))


def probe_cell(bench: Bench, arm: PlannedArm) -> Cell:
    """A few steps of an arm, at the rate that it names or finds."""
    config = bench.config(arm, bench.study.tuning.seed, f"cells/probe/{arm.slug}", None)
    steps, records = min(PROBE_STEPS, config.steps), replace(config.records, anatomy=False)
    config = replace(config, steps=steps, evaluation=Held(eval_problems=0), records=records)
    return bench.cell(f"probe {arm.name}", config, "test")


def tune(bench: Bench) -> dict[str, Choice]:
    """The rate of every arm, by name; runs the tries that are missing."""
    study = bench.study
    tuned = [arm for arm in bench.arms if not arm.placebo]
    defaults = {arm.name: default_rate(bench, arm) for arm in tuned}
    rounds: dict[str, list[list[TuningRun]]] = {arm.name: [] for arm in tuned}
    for share in shares(study):
        cells, begun = [], dict[str, list[TuningRun]]()
        for arm in tuned:
            before = rounds[arm.name][-1] if rounds[arm.name] else ()
            begun[arm.name] = tries(study, arm, defaults[arm.name], share, before)
            for entry in begun[arm.name]:
                given = (arm, study.tuning.seed, entry.folder, entry.rate, entry.share)
                label = f"tuning {arm.name} at {entry.rate:.2g}"
                cells.append(bench.cell(label, bench.config(*given), "tune"))
        bench.run(cells)
        for name, entries in begun.items():
            rounds[name].append([_tried(bench, entry) for entry in entries])
    found = {a.name: choose(study, defaults[a.name], rounds[a.name]) for a in tuned}
    found |= {a.name: Choice(found[study.control].learning_rate) for a in bench.arms if a.placebo}
    with bench.writing():
        Run(bench.folder).write("tuning.json", {name: asdict(one) for name, one in found.items()})
    return found


def _tried(bench: Bench, entry: TuningRun) -> TuningRun:
    folder = bench.folder / entry.folder
    if not (folder / RESULT).is_file():
        return replace(entry, failed=failure(folder) or "it has not run")
    return replace(entry, accuracy=read_object(folder / RESULT)["trained"][bench.study.primary])


def final_cells(bench: Bench, choices: dict[str, Choice]) -> list[Cell]:
    """The runs of the comparison, seed by seed, so that what is there early has every arm."""
    found = []
    for seed in bench.study.seeds:
        for arm in bench.arms:
            path, label = f"cells/final/{arm.slug}/seed-{seed}", f"{arm.name}, seed {seed}"
            config = bench.config(arm, seed, path, choices[arm.name].learning_rate)
            found.append(bench.cell(label, config, bench.split, bench.study.keep))
    return found


def check_arms(study: Study) -> None:
    """UserError for an arm whose expressions say nothing, or that is the same method as another."""
    from modicum import curricula, draws, objectives, rewards, tasks, updates

    seen: dict[object, str] = {}
    for arm in design.arms(study):
        config = design.config(study, arm, 0, Path("."), None)
        try:
            updates.parse(config.update)
            reward = rewards.parse(config.reward)
            goal = objectives.parse(config.objective)
            require_group(goal, config)
            correction_of(config)
            curricula.parse(config.curriculum)
            tasks.parse(config.task)
        except UserError as error:
            raise UserError(f"arm {arm.name}: {error}") from None
        batch, each = config.batch, first_updates(config)
        plain = isinstance(draws.parse(batch.groups), draws.Filter) and batch.divides == "sampled"
        if plain and goal.droppable and len(reward.terms) == 1:  # what is left out changes nothing
            config = replace(config, batch=replace(batch, groups="all", denominators="auto"))
        same = objectives.method(goal, each, any_scale=config.optimizer.max_grad_norm == 0)
        other = seen.setdefault((same, repr(replace(config, objective=""))), arm.name)
        if other != arm.name and not study.null_check:
            hint = "compare others, or say null_check = true if they are to measure the noise"
            why = f"are the same method here (docs/objectives.md): {hint}"
            raise UserError(f"the arms {other} and {arm.name} {why}")


class CostEstimate(Frozen):
    """Of a whole study, before it is run."""

    tuning_runs: int
    final_runs: int
    tokens: float | None  # generated in training, all runs; None when the budget is not of tokens
    seconds: float  # on this machine with these jobs
    step_seconds: dict[str, float]  # by arm

    def text(self) -> str:
        """For a reader."""
        return say("study_cost", of=self)


def cost(bench: Bench) -> CostEstimate:
    """From the base on the test split and a probe of each arm, which it runs.

    A run takes the seconds of a step of its probe for each of its steps, and those of the evaluation.
    Where training makes completions longer than the base's, a step takes longer."""
    study, base = bench.study, base_cell(bench, "test")
    cells = [probe_cell(bench, arm) for arm in bench.arms]
    bench.evaluate(base)
    bench.run(cells, retry_failed=True)
    more = float(read_object(base.folder / SECONDS)["seconds"]) + START_SECONDS
    each, unit, amount = tries_of(study), study.budget.unit, study.budget.amount
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
        seconds += 0.0 if arm.placebo else sum(share * whole + more for share in each)
        steps[arm.name] = step
    tuned = sum(not arm.placebo for arm in bench.arms)
    final = len(bench.arms) * len(study.seeds)
    tokens = amount * (final + tuned * sum(each)) if unit == "tokens" else None
    return CostEstimate(tuned * len(each), final, tokens, seconds / bench.launcher.jobs, steps)


def tries_of(study: Study) -> list[float]:
    """The share of the budget of every try of one arm."""
    count = len(study.tuning.factors)
    rounds = enumerate(shares(study) if count > 1 else [])
    return [share for number, share in rounds for _ in range(-(-count // 2**number))]
