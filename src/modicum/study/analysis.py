"""From a study's runs to `analysis.json`: estimates, tests, verdicts, costs, and how to repeat it.

The numbers are `inference.compare`'s, the words `verdict`'s. The generator of the resampling
is seeded by the study (`analysis_seed`), so the same runs give the same file. `curves.json`
beside it holds what the report shows of the runs, small enough to ship without them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from modicum.report.study import read
from modicum.results import Analysis, ArmResult, RunBudget
from modicum.runs import Run, flat, read_object
from modicum.study import inference, verdict
from modicum.study.collect import ArmRuns, Collected, collect, cost, difficulty, final
from modicum.study.design import PlannedArm, Study
from modicum.types import UserError

MEASURED = (
    *("seconds", "step_seconds", "time_ratio"),
    *("memory_bytes", "peak_memory_bytes", "memory_ratio"),
)


def write(study: Study, folder: Path) -> Analysis:
    """Write `analysis.json` and `curves.json` and return what the first holds."""
    found = analyse(collect(study, folder), folder)
    text = json.dumps(asdict(found), indent=1, ensure_ascii=False)
    run = Run(folder)
    run.write_text("analysis.json", text + "\n")
    curves = json.dumps(read.compact(folder, found), ensure_ascii=False, separators=(",", ":"))
    run.write_text("curves.json", curves + "\n")
    return found


def analyse(found: Collected, folder: Path) -> Analysis:
    """What `analysis.json` holds (docs/study.md)."""
    study, base, control = found.study, found.base, found.outcomes[0]
    compared = inference.compare(
        {outcome.arm.name: outcome.scores for outcome in found.outcomes},
        study.control,
        found.base_scores,
        study.margin,
        np.random.default_rng(study.analysis_seed),
        [outcome.arm.name for outcome in found.outcomes if outcome.arm.placebo],
    )
    first = next(iter(control.results.values()))
    whole = Analysis(
        question=study.question,
        control=study.control,
        arms=tuple(_arm(found, o, compared[o.arm.name], folder) for o in found.outcomes),
        model=first["model"],
        task=first["task"],
        primary=study.primary,
        margin=study.margin,
        seeds=tuple(study.seeds),
        budget=RunBudget(study.budget.unit, study.budget.amount),
        num_problems=base["num_problems"],
        samples_per_problem=base["samples_per_problem"],
        split=base["split"],
        base=inference.arm_interval(found.base_scores[None, :]),
        control_gain=compared[study.control].gain,
        variance=inference.variance(np.array(list(control.scores.values()))),
        repeat=(f"modicum study run study.toml --jobs 1 --out {folder.name}-again",),
    )
    said = asdict(whole)
    pairs = zip(whole.arms, said["arms"], strict=True)
    return replace(
        whole,
        arms=tuple(replace(arm, sentence=verdict.sentence(it, said)) for arm, it in pairs),
        conclusion=verdict.conclusion(said),
        notes=tuple(verdict.notes(said, study)),
    )


def _arm(found: Collected, outcome: ArmRuns, said: ArmResult, folder: Path) -> ArmResult:
    arm = outcome.arm
    return replace(
        said,
        slug=arm.slug,
        placebo=arm.placebo,
        settings=dict(arm.settings),
        kind=kind_of(arm),
        **vars(outcome.choice),
        difficulty=difficulty(found, outcome),
        cost=cost(outcome, found.outcomes[0]),
        folders={
            str(seed): path.relative_to(folder).as_posix()
            for seed, path in final(found.study, folder, arm).items()
            if seed in outcome.results
        },
        failed=outcome.failed,
    )


def kind_of(arm: PlannedArm) -> str:
    """The kind of the update that an arm sets; empty where it sets other things."""
    from modicum import updates  # torch is slow to import

    try:
        return updates.parse(str(arm.settings["update"])).kind
    except (KeyError, UserError):  # an update of another version or of the user's own
        return ""


def differences(one: Path, other: Path) -> list[str]:
    """Where the analyses in two folders differ; what is no analysis is a UserError."""
    files = [folder / "analysis.json" for folder in (one, other)]
    first, second = (read_object(file) for file in files)
    for file, values in zip(files, (first, second), strict=True):
        Analysis.from_json(values, str(file))
    return same(first, second)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two analyses differ, but for what was measured with a clock or a memory gauge."""
    first, second = (dict(flat(_settled(found), lists=True)) for found in (one, other))
    return sorted(
        f"{where}: {first.get(where)!r} and {second.get(where)!r}"
        for where in first.keys() | second.keys()
        if first.get(where) != second.get(where)
    )


def _settled(found: Mapping[str, Any]) -> dict[str, Any]:
    arms = []
    for arm in found["arms"]:
        kept = {k: v for k, v in arm.items() if k not in ("sentence", "folders")}
        arms.append(kept | {"cost": {k: v for k, v in arm["cost"].items() if k not in MEASURED}})
    return {**found, "arms": arms, "repeat": []}
