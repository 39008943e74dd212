"""From a study's runs to `analysis.json`: estimates, tests, verdicts, costs, and how to repeat it.

The numbers are `inference.compare`'s, the words `verdict`'s. The generator of the resampling
is seeded by the study (`analysis_seed`), so the same runs give the same file. `curves.json`
beside it holds what the report shows of the runs, small enough to ship without them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from modicum.report.study import read
from modicum.results import Analysis
from modicum.runs import Run, read_object
from modicum.study import inference, verdict
from modicum.study.collect import ArmRuns, Collected, collect, difficulty, final
from modicum.study.collect import cost as cost_of
from modicum.study.design import PlannedArm, Study
from modicum.types import UserError

MEASURED = ("seconds", "step_seconds", "memory_bytes", "peak_memory_bytes")
SHORT = 0.95  # a run that spent less of its budget is named


def write(study: Study, folder: Path) -> Analysis:
    """Write `analysis.json` and `curves.json` and return what the first holds."""
    values = analyse(collect(study, folder), folder)
    found = Analysis.from_json(values, str(folder / "analysis.json"))
    text = json.dumps(asdict(found), indent=1, ensure_ascii=False)
    run = Run(folder)
    run.write_text("analysis.json", text + "\n")
    curves = json.dumps(read.compact(folder, found), ensure_ascii=False, separators=(",", ":"))
    run.write_text("curves.json", curves + "\n")
    return found


def analyse(found: Collected, folder: Path) -> dict[str, Any]:
    """What `analysis.json` holds (docs/study.md)."""
    study, base = found.study, found.base
    control = found.outcomes[0]
    compared = inference.compare(
        {outcome.arm.name: outcome.scores for outcome in found.outcomes},
        study.control,
        found.base_scores,
        study.margin,
        np.random.default_rng(study.analysis_seed),
        [outcome.arm.name for outcome in found.outcomes if outcome.arm.placebo],
    )
    scores_SI = np.array(list(control.scores.values()))
    components = inference.variance(scores_SI)
    first = next(iter(control.results.values()))
    gain = compared[study.control].gain
    start = inference.arm_interval(found.base_scores[None, :])
    whole: dict[str, Any] = {
        "question": study.question,
        "model": first["model"],
        "task": first["task"],
        "control": study.control,
        "primary": study.primary,
        "margin": study.margin,
        "seeds": list(study.seeds),
        "budget": {"unit": study.budget.unit, "amount": study.budget.amount},
        "num_problems": base["num_problems"],
        "samples_per_problem": base["samples_per_problem"],
        "split": base["split"],
        "base": asdict(start),
        "control_gain": gain and asdict(gain),
        "variance": components and asdict(components),
        "arms": [
            _arm(found, outcome, control, compared[outcome.arm.name], folder)
            for outcome in found.outcomes
        ],
    }
    for arm in whole["arms"]:
        arm["sentence"] = verdict.sentence(arm, whole)
    return whole | {
        "conclusion": verdict.conclusion(whole),
        "notes": [*verdict.notes(whole), *_notes(study, whole["arms"])],
        "repeat": [f"modicum study run study.toml --jobs 1 --out {folder.name}-again"],
    }


def _arm(
    found: Collected,
    outcome: ArmRuns,
    control: ArmRuns,
    said: inference.ArmComparison,
    folder: Path,
) -> dict[str, Any]:
    arm = outcome.arm
    numbers = asdict(said)
    numbers.pop("seeds")
    paths = final(found.study, folder, arm)
    return {
        "name": arm.name,
        "slug": arm.slug,
        "placebo": arm.placebo,
        "settings": dict(arm.settings),
        "kind": kind_of(arm),
        **asdict(outcome.choice),
        "tries": [asdict(entry) for entry in outcome.choice.tries],
        **numbers,
        "difficulty": difficulty(found, outcome),
        "cost": cost_of(outcome, control),
        "folders": {
            str(seed): path.relative_to(folder).as_posix()
            for seed, path in paths.items()
            if seed in outcome.results
        },
        "failed": list(outcome.failed),
    }


def kind_of(arm: PlannedArm) -> str:
    """The kind of the update that an arm sets; empty where it sets other things."""
    from modicum import updates  # torch is slow to import

    try:
        return updates.parse(str(arm.settings["update"])).kind
    except (KeyError, UserError):  # an update of another version or of the user's own
        return ""


def _notes(study: Study, arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the design itself must own up to."""
    notes = []
    edges = [arm for arm in arms if arm["rate_at_edge"]]
    if edges:
        notes.append(
            f"The best rate of {verdict.names(edges)} lies at the edge of its tries: a further one may"
            " be better."
        )
    failed = [arm for arm in arms if any(entry["failed"] for entry in arm["tries"])]
    if failed:
        notes.append(f"Tries of {verdict.names(failed)} failed.")
    unit = {"tokens": "generated_tokens"}.get(study.budget.unit, study.budget.unit)
    short = [arm for arm in arms if arm["cost"] and arm["cost"][unit] < SHORT * study.budget.amount]
    if short:
        notes.append(
            f"{verdict.names(short)} ran out of steps ({study.budget.max_steps}) before the budget was"
            " spent."
        )
    if study.tuning.share < 1 and len(study.tuning.factors) > 1:
        notes.append(
            f"Tries had {study.tuning.share:g} of a run's budget: short ones prefer high rates."
        )
    return notes


def differences(one: Path, other: Path) -> list[str]:
    """Where the analyses in two folders differ; what is no analysis is a UserError."""
    files = [folder / "analysis.json" for folder in (one, other)]
    first, second = (read_object(file) for file in files)
    for file, values in zip(files, (first, second), strict=True):
        Analysis.from_json(values, str(file))
    return same(first, second)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two analyses differ, but for what was measured with a clock or a memory gauge."""
    return sorted(_differences("", _settled(one), _settled(other)))


def _settled(found: Mapping[str, Any]) -> dict[str, Any]:
    arms = []
    for arm in found["arms"]:
        kept = {k: v for k, v in arm.items() if k not in ("sentence", "folders")}
        left = (*MEASURED, "time_ratio", "memory_ratio")
        arms.append(kept | {"cost": {k: v for k, v in arm["cost"].items() if k not in left}})
    return {**found, "arms": arms, "repeat": []}


def _differences(where: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return [
            line
            for key in sorted({*one, *other}, key=str)
            for line in _differences(f"{where}.{key}".lstrip("."), one.get(key), other.get(key))
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for n, (a, b) in pairs for line in _differences(f"{where}[{n}]", a, b)]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]
