"""From a study's runs to `analysis.json`: estimates, tests, verdicts, costs, and how to repeat it.

The resampling is seeded by the study (`analysis_seed`), so the same runs give the same file.
`report/verdict.txt` has the words, which say no more than what was tested.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from modicum.report.study import read
from modicum.report.words import environment, on_one_line
from modicum.results import Analysis, ArmResult, RunBudget
from modicum.runs import Run, flat, read_object
from modicum.study import inference
from modicum.study.cells import COUNTED
from modicum.study.collect import ArmRuns, Collected, collect, cost, difficulty, final
from modicum.study.design import PlannedArm, Study
from modicum.study.inference import ALPHA
from modicum.types import UserError

VARYING = ("sentence", "folders", "seconds", "step_seconds", "time_ratio")
VARYING += ("memory_bytes", "peak_memory_bytes", "memory_ratio")


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
    seen, unit = asdict(whole), study.budget.unit
    own = said("of_design", seen["arms"], study, COUNTED.get(unit, unit))
    pairs = zip(whole.arms, seen["arms"], strict=True)
    return replace(
        whole,
        arms=tuple(replace(arm, sentence="".join(said("sentence", it, seen))) for arm, it in pairs),
        conclusion="".join(said("conclusion", seen)),
        notes=(*said("notes", seen), *own, *said("of_devices", found.devices)),
    )


def _arm(found: Collected, outcome: ArmRuns, judged: ArmResult, folder: Path) -> ArmResult:
    arm = outcome.arm
    return replace(
        judged,
        slug=arm.slug,
        placebo=arm.placebo,
        settings=dict(arm.settings),
        kind=kind_of(arm),
        **vars(outcome.choice),
        difficulty=difficulty(found, outcome),
        cost=cost(outcome, found.outcomes[0], timed=len(found.devices) < 2),
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

    def kept(of: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in of.items() if key not in VARYING}

    def settled(found: Mapping[str, Any]) -> dict[str, Any]:
        notes = [text for text in found["notes"] if "different devices" not in text]
        arms = [kept(arm) | {"cost": kept(arm["cost"])} for arm in found["arms"]]
        return dict(flat({**found, "arms": arms, "notes": notes, "repeat": []}, lists=True))

    first, second = settled(one), settled(other)
    return sorted(
        f"{where}: {first.get(where)!r} and {second.get(where)!r}"
        for where in first.keys() | second.keys()
        if first.get(where) != second.get(where)
    )


def said(name: str, *values: Any) -> list[str]:
    """The paragraphs of one of the texts of verdict.txt, made of what it speaks of."""
    paragraphs = getattr(_texts(), name)(*values).split("\n---\n")
    return [text for paragraph in paragraphs if (text := on_one_line(paragraph))]


@cache
def _texts() -> Any:
    made = environment(
        judged=lambda arms, *verdicts: [arm for arm in arms if arm["verdict"] in verdicts],
        clear=lambda study: bool(study["control_gain"]) and study["control_gain"]["low"] > 0,
        single=lambda study: max(len(arm["by_seed"]) for arm in study["arms"]) == 1,
        share_of=lambda share: f"{100 * share:.{1 if share >= 0.001 else 3}f} %",
        **{"signed": _signed, "span": _span, "size": _size},
    )
    return made.get_template("verdict.txt", globals={"alpha": ALPHA}).module


def _signed(value: float, unit: str = " points") -> str:
    """Points with their sign; a value that rounds to 0 has none."""
    text = f"{100 * value:+.1f}"
    return f"{'0.0' if float(text) == 0 else text}{unit}"


def _span(found: Mapping[str, float], level: int | str = "") -> str:
    return f"{_signed(found[f'low{level}'], '')} to {_signed(found[f'high{level}'], '')}"


def _size(value: float) -> str:
    text = f"{100 * value:.1f}".removesuffix(".0")
    return f"{text} point{'' if text == '1' else 's'}"
