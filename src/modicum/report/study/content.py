"""What a study's report says, before it is a page or Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modicum.report import content, frame
from modicum.report.content import Settings
from modicum.report.frame import Cell, Drawn, Table
from modicum.report.study import changes, curves, figures, method, tables
from modicum.report.study.families import family, ranked
from modicum.report.study.read import Study, Text

LETTERS_SHOWN = 1500


@dataclass(frozen=True)
class Said:
    """An arm's sentence, with the number of its colour (None: no series)."""

    name: str
    series: int | None
    sentence: str
    more: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """One held-out problem and what each model wrote: name, series, completion."""

    question: str
    gold: str
    written: tuple[tuple[str, int | None, Text], ...]


@dataclass(frozen=True)
class Content:
    """Everything that is said about a study; empty where there is nothing to say."""

    title: str
    question: str
    conclusion: str
    facts: str
    arms: Table
    costs: Table
    tests: Table | None
    said: tuple[Said, ...]
    figures: Mapping[str, Drawn]
    missing: str
    """One line about what is left out because run folders are not there."""
    changes: Table | None
    rule: str
    answers: tuple[Answers, ...]
    failures: tuple[tuple[str, str], ...]
    proofs: tuple[tuple[str, str], ...]
    method: tuple[str, ...]
    notes: tuple[str, ...]
    design: Mapping[str, str]
    settings: Settings
    settings_table: Table | None
    versions: Mapping[str, str]
    environments: int
    repeat: tuple[str, ...]


def gather(study: Study, title: str) -> Content:
    """All that is to be said about the study, its figures drawn."""
    analysis = study.analysis
    shown = curves.arms(study)
    settings = content.compare([study.curves[arm.slug].config for arm in shown])
    if not shown:
        settings = content.compare([study.settings.get("config", {})])
    design = {k: v for k, v in study.settings.items() if k not in ("arms", "config", "question")}
    return Content(
        title=title,
        question=analysis.question,
        conclusion=analysis.conclusion,
        facts=_facts(study),
        arms=tables.arms(analysis),
        costs=tables.costs(analysis),
        tests=tables.tests(analysis),
        said=tuple(_said(study)),
        figures={drawn.name: drawn for drawn in frame.draw(figures.gather(study))},
        missing=_missing(study),
        changes=changes.numbers(study) if changes.measured(study) else None,
        rule=study.samples.rule,
        answers=tuple(_answers(study)),
        failures=tuple((arm.name, text) for arm in analysis.arms for text in arm.failed),
        proofs=tuple(
            (arm.name, proof) for arm in shown if (proof := study.curves[arm.slug].change_proof)
        ),
        method=tuple(method.paragraphs(analysis)),
        notes=analysis.notes,
        design=content.compare([design]).shared,
        settings=settings,
        settings_table=_different(study, settings),
        versions=content.compare([study.environment]).shared,
        environments=study.environments,
        repeat=analysis.repeat,
    )


def sections(found: Content) -> list[tuple[str, str]]:
    """The sections that a page about `found` has: id, name."""
    drawn = found.figures
    there = {
        ("result", "Result"): True,
        ("cost", "Accuracy and cost"): True,
        ("difficulty", "By difficulty"): "difficulty" in drawn,
        ("training", "During training"): any(n.startswith("learning") for n in drawn)
        or "signals" in drawn,
        ("tuning", "Tuning"): "tuning" in drawn,
        ("weights", "What changed in the weights"): found.changes is not None,
        ("written", "What the models wrote"): bool(found.answers),
        ("failures", "What failed"): bool(found.failures),
        ("method", "How the numbers are made"): True,
        ("settings", "Settings"): True,
        ("versions", "Versions and machine"): bool(found.versions),
        ("repeat", "How to repeat it"): bool(found.repeat),
    }
    return [section for section, known in there.items() if known]


def marked(text: str) -> list[tuple[bool, str]]:
    """`text` cut at its backticks: (whether it is code, piece)."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # one backtick has no partner: it is no mark
        return [(False, text)]
    return [(number % 2 == 1, piece) for number, piece in enumerate(pieces) if piece]


def about(written: Text) -> str:
    """The verdict in a word."""
    return "right" if written.strict else "wrong"


def _facts(study: Study) -> str:
    analysis = study.analysis
    facts = [f"model {analysis.model}", f"task {analysis.task}", f"{len(analysis.arms)} arms"]
    facts.append("1 seed" if len(analysis.seeds) == 1 else f"{len(analysis.seeds)} seeds")
    if analysis.budget is not None:
        facts.append(f"{analysis.budget.amount:,.0f} {analysis.budget.unit} a run")
    if analysis.base is not None:
        facts.append(f"base {100 * analysis.base.mean:.1f} %")
    if analysis.control_gain is not None:
        gain = analysis.control_gain
        ends = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        text = f"{analysis.control} gains {100 * gain.mean:+.1f} points (95 % {ends})"
        facts.append(text.replace("+-", "-"))
    return "; ".join(facts).replace("-", "−") if analysis.control_gain else "; ".join(facts)


def _said(study: Study) -> list[Said]:
    found = []
    for arm in ranked(study.analysis):
        more = []
        if arm.retention is None and arm.retention_note:
            more.append(f"No retention: {arm.retention_note}.")
        if arm.seeds_needed is not None and f"{arm.seeds_needed} seeds" not in arm.sentence:
            more.append(f"About {arm.seeds_needed} seeds would decide it.")
        if arm.sentence or more:
            series = family(study.analysis, arm).series
            found.append(Said(arm.name, series, arm.sentence, tuple(more)))
    return found


def _missing(study: Study) -> str:
    absent = [a.name for a in study.analysis.arms if a.folders and a.slug not in study.curves]
    if not absent:
        return ""
    whose = "any arm" if not study.curves else figures.listed(absent)
    return (
        f"The run folders of {whose} are not here, nor is a copy of their curves: curves, changes"
        " of the weights and completions that come from them are left out."
    )


def _answers(study: Study) -> list[Answers]:
    analysis = study.analysis
    arms = {arm.slug: arm for arm in analysis.arms}
    found = []
    for problem in study.samples.problems:
        written: list[tuple[str, int | None, Text]] = []
        if "" in problem.texts:
            written.append(("base", None, problem.texts[""]))
        for slug, arm in arms.items():
            if slug in problem.texts:
                series = family(analysis, arm).series
                written.append((arm.name, series, problem.texts[slug]))
        found.append(Answers(problem.question, problem.gold, tuple(written)))
    return found


def _different(study: Study, settings: Settings) -> Table | None:
    """The settings in which arms differ, a row an arm; of a copy without runs, its overrides."""
    shown = curves.arms(study)
    if shown and settings.different:
        heads = ("arm", *settings.different)
        columns = list(settings.different.values())
        rows = [
            [Cell(arm.name, code=True), *(column[number] for column in columns)]
            for number, arm in enumerate(shown)
        ]
        return frame.table("Settings in which the arms differ", heads, rows, wrap=True)
    overrides: list[tuple[str, dict[str, Any]]] = [
        (arm.name, dict(arm.settings)) for arm in study.analysis.arms
    ]
    names = list(dict.fromkeys(name for _, values in overrides for name in values))
    if shown or not names:
        return None
    rows = [
        [Cell(arm, code=True), *(str(values.get(name, "—")) for name in names)]
        for arm, values in overrides
    ]
    return frame.table("What the arms set", ("arm", *names), rows, wrap=True)
