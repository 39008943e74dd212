"""From a study's runs to `analysis.json`: estimates, tests, verdicts, costs, and how to repeat it.

Each arm has one row of problem scores for every seed that finished; seeds are paired with the
control's by number, problems by place (`compare`; docs/statistics.md). The resampling is seeded by the
study (`analysis_seed`), so the same runs give the same file. `report/verdict.txt` has the words, which
say no more than what was tested.

    S seed, I problem"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from modicum import stats
from modicum.report.study import read
from modicum.report.words import environment, on_one_line
from modicum.results import Analysis, ArmResult, ClaimTest, Column, RunBudget
from modicum.runs import Run, flat, read_object
from modicum.stats import Interval
from modicum.study.cells import COUNTED
from modicum.study.collect import SCORES, ArmRuns, Collected, collect, cost, difficulty
from modicum.study.design import PlannedArm, Study
from modicum.study.estimate import Estimate, estimate, retention, spread, table
from modicum.types import UserError

ALPHA = 0.05
Rows = Mapping[int, Column]
MEASURED = r"sentence|folders|(step_)?seconds|time_ratio|(peak_)?memory_bytes|memory_ratio"
VARYING = re.compile(rf"arms\[\d+\]\.(cost\.)?({MEASURED})\b")


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
    scores = {outcome.arm.name: outcome.scores for outcome in found.outcomes}
    placebos = [outcome.arm.name for outcome in found.outcomes if outcome.arm.placebo]
    rng = np.random.default_rng(study.analysis_seed)
    compared = compare(scores, study.control, found.base_scores, study.margin, rng, placebos)
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
        base=arm_interval(found.base_scores[None, :]),
        beside=_beside(study, [base]),
        control_gain=compared[study.control].gain,
        variance=spread(table(list(control.scores.values()))).components,
        repeat=(
            f"modicum study run study.toml --out {folder.name}-again    # in this folder",
            f"modicum study same {folder.name}-again .",
        ),
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
        beside=_beside(found.study, (of["trained"] for of in outcome.results.values())),
        **vars(outcome.choice),
        difficulty=difficulty(found, outcome),
        cost=cost(outcome, found.outcomes[0], timed=len(found.devices) < 2),
        folders={
            str(seed): outcome.folders[seed].relative_to(folder).as_posix()
            for seed in outcome.results
        },
        failed=outcome.failed,
    )


def _beside(study: Study, evaluations: Iterable[Mapping[str, Any]]) -> dict[str, Interval]:
    """Of the readings that are not the primary one, where all evaluations have them."""
    every = list(evaluations)
    names = [name for name in ("accuracy", "lenient") if name != study.primary and every]
    known = [name for name in names if all(of.get(SCORES[name]) for of in every)]
    return {name: arm_interval([of[SCORES[name]] for of in every]) for name in known}


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
    found = [read_object(file) for file in files]
    for file, values in zip(files, found, strict=True):
        Analysis.from_json(values, str(file))
    return same(*found)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where two analyses differ, but for what was measured with a clock or a memory gauge."""

    def settled(found: Mapping[str, Any]) -> dict[str, Any]:
        notes = [text for text in found["notes"] if "different devices" not in text]
        every = flat({**found, "arms": [*found["arms"]], "notes": notes, "repeat": []}, lists=True)
        return {where: value for where, value in every if not VARYING.match(where)}

    first, second = settled(one), settled(other)
    places = first.keys() | second.keys()
    pairs = [(where, first.get(where), second.get(where)) for where in places]
    odd = [(where, a, b) for where, a, b in pairs if a != b]
    # An analysis of an older version has no reading beside the primary one.
    told = [of for of in odd if "beside." not in of[0] or None not in of]
    return sorted(f"{where}: {a!r} and {b!r}" for where, a, b in told)


def said(name: str, *values: Any) -> list[str]:
    """The paragraphs of one of the texts of verdict.txt, made of what it speaks of."""
    paragraphs = getattr(_texts(), name)(*values).split("\n---\n")
    return [text for paragraph in paragraphs if (text := on_one_line(paragraph))]


@cache
def _texts() -> Any:
    made = environment(judged=lambda arms, *wanted: [a for a in arms if a["verdict"] in wanted])
    return made.get_template("verdict.txt", globals={"alpha": ALPHA}).module


def arm_interval(scores_SI: ArrayLike, base_I: ArrayLike | None = None) -> Interval:
    """The mean of scores, seeds x problems, with its 95 % interval over both, within [0, 1].

    With those of the untrained model on the same problems that of the gain, within [-1, 1]."""
    scores = table(scores_SI) - (0.0 if base_I is None else table(base_I))
    return estimate(scores, (0.0 if base_I is None else -1.0, 1.0), alone=True).interval(0.95)


def paired(arm_SI: ArrayLike, control_SI: ArrayLike, rng: Generator) -> Estimate:
    """The estimate of arm - control, whose rows are the same seeds in the same order."""
    return estimate(table(arm_SI) - table(control_SI), (-1.0, 1.0), rng)


def compare(
    scores: Mapping[str, Rows],
    control: str,
    base_I: ArrayLike,
    margin: float,
    rng: Generator,
    placebos: Collection[str] = (),
) -> dict[str, ArmResult]:
    """Every arm against the control; `scores` has by arm and seed one score a problem.

    All arms are bootstrapped with the same random numbers: none depends on which others there are.
    UserError for a single problem."""
    base = table(base_I)
    draw = int(rng.integers(2**63))
    others = {name: {} if name == control else scores[control] for name in scores}
    arms = {name: _compared(name, rows, others[name], base, draw) for name, rows in scores.items()}
    learned = arms[control][0].gain
    clear = learned is not None and learned.low > 0
    tests = _tests({n: d for n, (_, d) in arms.items() if d and n not in placebos}, margin)
    open_arms = sum(not by_name["noninferior"].holds for by_name in tests.values())
    found = {}
    for name, (arm, gap) in arms.items():
        verdict = _verdict(arm, tests.get(name), name == control, name in placebos, clear)
        needed = None
        if gap and verdict == "undecided" and clear and name in tests:
            needed = gap.spread.seeds_needed(margin, ALPHA / open_arms)
        found[name] = replace(arm, tests=tests.get(name), verdict=verdict, seeds_needed=needed)
    return found


def _compared(
    name: str, rows: Rows, control: Rows, base_I: Column, draw: int
) -> tuple[ArmResult, Estimate | None]:
    """What one arm's scores give, not yet judged; `control` is empty for the control itself."""
    if not rows:
        return ArmResult(name, "", "", retention_note="no seed finished"), None
    scores_SI = np.stack([rows[seed] for seed in sorted(rows)])
    by_seed = {str(seed): float(np.mean(rows[seed])) for seed in sorted(rows)}
    bands = arm_interval(scores_SI), arm_interval(scores_SI, base_I)
    below = sum(reached < base_I.mean() - stats.ROUNDING for reached in by_seed.values())
    alone = ArmResult(name, "", "", by_seed=by_seed, accuracy=bands[0], gain=bands[1])
    alone = replace(alone, below_base=stats.share_interval(below, len(by_seed)))
    if not control:
        return alone, None
    if not (seeds := tuple(sorted(set(rows) & set(control)))):
        why = "no seed finished both here and in the control"
        return replace(alone, retention_note=why), None
    arm_SI, control_SI = (np.stack([of[seed] for seed in seeds]) for of in (rows, control))
    found = paired(arm_SI, control_SI, np.random.default_rng(draw))
    kept = retention(arm_SI, control_SI, base_I)
    told: dict[str, Any] = {"retention_note" if isinstance(kept, str) else "retention": kept}
    return replace(alone, difference=found.difference, **told), found


def _tests(found: Mapping[str, Estimate], margin: float) -> dict[str, dict[str, ClaimTest]]:
    p_values = {
        "noninferior": [d.p_at_most(-margin) for d in found.values()],
        "superior": [min(1.0, 2 * d.p_at_most(0.0)) for d in found.values()],
        "equivalent": [max(d.p_at_most(-margin), d.p_at_least(margin)) for d in found.values()],
        "inferior": [min(1.0, 2 * d.p_at_least(0.0)) for d in found.values()],
    }
    adjusted = {test: [*zip(of, stats.holm(of), strict=True)] for test, of in p_values.items()}
    tests: dict[str, dict[str, ClaimTest]] = {}
    for place, name in enumerate(found):
        both = {test: pairs[place] for test, pairs in adjusted.items()}
        held = {test for test, (_, after) in both.items() if after <= ALPHA}
        held -= set() if "noninferior" in held else {"superior", "equivalent"}
        tests[name] = {test: ClaimTest(*pair, test in held) for test, pair in both.items()}
    return tests


def _verdict(
    arm: ArmResult, tests: Mapping[str, ClaimTest] | None, control: bool, placebo: bool, clear: bool
) -> str:
    """The class of an arm; where the control did not clearly gain there is nothing to match."""
    if arm.accuracy is None or arm.gain is None:
        return "failed"
    if control:
        return "control"
    if placebo:
        loses = "placebo loses" if arm.gain.high < 0 else "placebo"
        return "placebo gains" if arm.gain.low > 0 else loses
    matched = {"equivalent": "equivalent", "noninferior": "not worse"} if clear else {}
    words = {"superior": "better", **matched, "inferior": "worse"}
    return next((word for test, word in words.items() if tests and tests[test].holds), "undecided")
