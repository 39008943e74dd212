"""A study's folder as data: scores by seed and problem, costs, tries, failures of each arm."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modicum.parts import base_of, began
from modicum.results import ArmCost, DifficultyLevel, fill
from modicum.runs import read_lines, read_object
from modicum.study import design
from modicum.study.cell import BASE, RESULT, failure
from modicum.study.cells import Choice
from modicum.study.design import PlannedArm, Study
from modicum.types import Frozen, UserError

SCORES = {"accuracy": "scores", "lenient": "lenient_scores", "greedy": "greedy_scores"}
MEANS = ("active_parameters_mean", "seconds", "generated_tokens", "steps", "flops")
MEANS += ("peak_memory_bytes", "start_memory_bytes", "optimizer_bytes")
# How often the base solves a problem, and what that level is called.
LEVELS = ((0.0, "base: 0 %"), (0.5, "to 50 %"), (1.0, "above"))


class ArmRuns(Frozen):
    """What an arm's final runs came to; `scores` has one array [problems] for each seed."""

    arm: PlannedArm
    scores: Mapping[int, NDArray[np.float64]]
    results: Mapping[int, Mapping[str, Any]]
    steps: Mapping[int, float]  # median seconds of a step, by seed
    failed: tuple[str, ...]
    choice: Choice


class Collected(Frozen):
    """All that the analysis needs."""

    study: Study
    base: Mapping[str, Any]  # the untrained model's evaluation
    outcomes: tuple[ArmRuns, ...]
    levels: tuple[str, ...]  # of every problem, one of `level_names`
    level_names: tuple[str, ...]
    devices: tuple[str, ...] = ()  # that the final runs say they were made on

    @property
    def base_scores(self) -> NDArray[np.float64]:
        """Of the untrained model, [problems]."""
        return np.array(self.base[SCORES[self.study.primary]])


def collect(study: Study, folder: Path) -> Collected:
    """Everything from the runs that are there; a study without a base or runs is a UserError."""
    path = folder / "cells" / "base-test"
    if not (path / BASE).is_file():
        raise UserError(f"{folder} has no evaluation of the base yet; study run makes it")
    base = read_object(path / BASE)
    tuned = read_object(folder / "tuning.json") if (folder / "tuning.json").is_file() else {}
    pairs = ((arm, tuned.get(arm.name, {})) for arm in design.arms(study))
    outcomes = tuple(outcome(study, arm, folder, choice) for arm, choice in pairs)
    if not outcomes[0].scores:
        raise UserError(f"no run of the control {study.control} has ended yet in {folder}")
    for found in outcomes:
        for seed, result in found.results.items():
            if result["trained"]["ids"] != base["ids"]:
                which = f"{found.arm.name}, seed {seed}"
                raise UserError(f"{which} was judged on other problems than the base")
    # Runs that name the same base, in one dtype, are of the same.
    known: dict[tuple[Any, ...], tuple[Path, dict[str, Any]]] = {}
    runs = (final(study, folder, found.arm).values() for found in outcomes)
    for run in [path, *itertools.chain.from_iterable(runs)]:
        own = base_of(run)
        hashes = {name: value for name, value in own.items() if name.endswith("_hash")}
        if hashes:
            first, others = known.setdefault((own.get("model"), own.get("dtype")), (run, hashes))
            if hashes != others:
                why = f"though both name {own.get('model')}: their hashes differ"
                raise UserError(f"{run} and {first} are of different base models, {why}")
    runs = (final(study, folder, found.arm)[seed] for found in outcomes for seed in found.results)
    return Collected(study, base, outcomes, *_levels(path, base), devices(runs))


def devices(runs: Iterable[Path]) -> tuple[str, ...]:
    """The GPUs or processors that runs say they were made on."""
    return tuple(sorted({str(name) for run in runs if (name := began(run).get("device"))}))


def final(study: Study, folder: Path, arm: PlannedArm) -> dict[int, Path]:
    """The folders of an arm's final runs by seed."""
    return {seed: folder / "cells" / "final" / arm.slug / f"seed-{seed}" for seed in study.seeds}


def outcome(study: Study, arm: PlannedArm, folder: Path, tuned: Mapping[str, Any]) -> ArmRuns:
    """What the final runs of an arm in a folder came to; `tuned` has its choice of a rate."""
    scores, results, steps, failed = {}, {}, {}, []
    for seed, path in final(study, folder, arm).items():
        if (path / RESULT).is_file():
            result = read_object(path / RESULT)
            scores[seed] = np.array(result["trained"][SCORES[study.primary]])
            results[seed] = result
            lines = read_lines(path / "metrics.jsonl")
            steps[seed] = median(line["time/step_seconds"] for line in lines)
        elif why := failure(path):
            failed.append(f"seed {seed}: {why}")
    choice = fill(Choice, tuned, str(folder / "tuning.json"))
    return ArmRuns(arm, scores, results, steps, tuple(failed), choice)


def cost(outcome: ArmRuns, control: ArmRuns, timed: bool = True) -> ArmCost:
    """What an arm's runs took, in means over seeds; ratios to the control's. Without seconds unless
    they can be compared (`timed`)."""
    if not outcome.results:
        return ArmCost()
    mine, other = _means(outcome), _means(control)
    ratios = {
        f"{name}_ratio": mine[of] / other[of] if other[of] else None
        for name, of in (("time", "seconds"), ("memory", "memory_bytes"), ("flops", "flops"))
    }
    found = ArmCost(**mine, **ratios, tuning_runs=len(outcome.choice.tries))
    return found if timed else replace(found, seconds=None, step_seconds=None, time_ratio=None)


def _means(outcome: ArmRuns) -> dict[str, Any]:
    results, first = outcome.results.values(), next(iter(outcome.results.values()))
    found: dict[str, Any] = {name: fmean(float(of[name]) for of in results) for name in MEANS}
    memory = found["peak_memory_bytes"] - found.pop("start_memory_bytes")
    found |= {name: round(found[name]) for name in ("peak_memory_bytes", "optimizer_bytes")}
    return found | {
        "parameters": first["trainable_parameters"],
        "total_parameters": first["total_parameters"],
        "share": found["active_parameters_mean"] / first["total_parameters"],
        "step_seconds": fmean(outcome.steps.values()),
        "memory_bytes": round(memory),
    }


def _levels(path: Path, base: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    rows = read_lines(path / "completions-base.jsonl")
    known = {row["id"]: row.get("difficulty") for row in rows}
    measures = [known.get(name) for name in base["ids"]]
    found = [float(value) for value in measures if value is not None]
    if len(found) == len(measures) and len(set(found)) > 1:
        names = [f"{value:g}" for value in sorted(set(found))]
        return tuple(f"{value:g}" for value in found), tuple(names)
    levels = [next(n for limit, n in LEVELS if score <= limit) for score in base["scores"]]
    order = [name for _, name in LEVELS[::-1]]
    return tuple(levels), tuple(name for name in order if name in levels)


def difficulty(found: Collected, outcome: ArmRuns) -> tuple[DifficultyLevel, ...]:
    """Mean score of an arm over seeds and problems of each level, beside the base's."""
    levels = np.array(found.levels)
    scores = np.array(list(outcome.scores.values()))
    return tuple(
        DifficultyLevel(
            name,
            int(chosen.sum()),
            float(scores[:, chosen].mean()) if len(scores) else None,
            float(found.base_scores[chosen].mean()),
        )
        for name in found.level_names
        for chosen in [levels == name]
    )
