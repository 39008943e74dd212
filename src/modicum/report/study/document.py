"""What the report of a study says."""

from collections.abc import Mapping, Sequence

from modicum.report import document as doc
from modicum.report import sections
from modicum.report.figures import (
    arm_changes,
    arm_curves,
    difficulty,
    forest,
    frontier,
    signals,
    tuning,
)
from modicum.report.numbers import NONE, listed, percent, points
from modicum.report.study import method, tables
from modicum.report.study.families import family, ranked
from modicum.report.study.read import StudyRecord
from modicum.results import ArmResult

RATIOS = (
    "Trained: share of the model's parameters. Time and peak memory (above the start of the"
    " process) as multiples of the control's. Rate “at edge”: the best of its grid lies at the end"
    " of it, so that a better one may lie outside."
)
MEANS = (
    "Means over the seeds. FLOPs as a multiple of the control's. Under a schedule fewer"
    " parameters are in training at once than are trained in all."
)
WEIGHTS = (
    "The trained model, adapters merged, against the base, in fp32. Entries: share of all that"
    " differ at all, and that still differ after both are rounded to bf16. Size: norm of the"
    " change over that of the weights. Rank: effective rank of the change, mean over the matrices"
    " of a part (share of full rank)."
)
TESTS = (
    "A tick: the claim holds at 5 %. Against the margin the tests are one-sided, against 0"
    " two-sided."
)


def document(study: StudyRecord, title: str) -> doc.Document:
    """All that is to be said about the study."""
    analysis = study.analysis
    costs = tables.costs(analysis)
    changes, map_ = arm_changes.table(study), arm_changes.figure(study)
    fold = doc.folded("The changes in numbers", changes, doc.Text(WEIGHTS, note=True))
    shown = (
        _result(study),
        doc.section(
            "cost",
            "Accuracy and cost",
            frontier.figures(analysis),
            doc.folded("What the arms cost, in numbers", costs, doc.Text(MEANS, note=True)),
        ),
        doc.section("difficulty", "By difficulty", difficulty.figure(analysis)),
        _training(study),
        doc.section("tuning", "Tuning", tuning.figure(analysis)),
        doc.section("weights", "What changed in the weights", map_ if changes else None, fold),
        doc.section("written", "What the models wrote", _written(study)),
        doc.section("failures", "What failed", _failures(study)),
        _method(study),
        _settings(study),
        _versions(study),
        sections.repeat(analysis.repeat),
    )
    return doc.Document(
        title=title,
        headline=analysis.question,
        conclusion=analysis.conclusion,
        notes=tuple(note for note in (f"{_facts(study)}.", _missing(study)) if note),
        sections=tuple(found for found in shown if found.blocks),
    )


def _facts(study: StudyRecord) -> str:
    analysis = study.analysis
    facts = [f"model {analysis.model}", f"task {analysis.task}", f"{len(analysis.arms)} arms"]
    facts.append("1 seed" if len(analysis.seeds) == 1 else f"{len(analysis.seeds)} seeds")
    if analysis.budget is not None:
        facts.append(f"{analysis.budget.amount:,.0f} {analysis.budget.unit} a run")
    if analysis.base is not None:
        facts.append(f"base {percent(analysis.base.mean)} %")
    if (gain := analysis.control_gain) is not None:
        ends = f"{points(gain.low)} to {points(gain.high)}"
        facts.append(f"{analysis.control} gains {points(gain.mean)} points (95 % {ends})")
    return "; ".join(facts)


def _missing(study: StudyRecord) -> str:
    """What is left out because run folders are not there."""
    absent = [a.name for a in study.analysis.arms if a.folders and a.slug not in study.curves]
    if not absent:
        return ""
    whose = "any arm" if not study.curves else listed(absent)
    return (
        f"The run folders of {whose} are not here, nor is a copy of their curves: curves, changes"
        " of the weights and completions that come from them are left out."
    )


def _result(study: StudyRecord) -> doc.Section:
    said = []
    for arm in ranked(study.analysis):
        words = [arm.sentence] if arm.sentence else []
        if arm.retention is None and arm.retention_note:
            words.append(f"No retention: {arm.retention_note}.")
        if arm.seeds_needed is not None and f"{arm.seeds_needed} seeds" not in arm.sentence:
            words.append(f"About {arm.seeds_needed} seeds would decide it.")
        # A sentence that names its arm needs no name before it.
        name = "" if f"`{arm.name}`" in arm.sentence else f"`{arm.name}`: "
        said += [name + " ".join(words)] if words else []
    return doc.section(
        "result",
        "Result",
        forest.figure(study.analysis),
        tables.arms(study.analysis),
        doc.Text(RATIOS, note=True),
        (doc.Heading("The arms in words"), doc.Bullets(tuple(said))) if said else None,
    )


def _training(study: StudyRecord) -> doc.Section:
    blocks: list[doc.Piece] = []
    for figure in arm_curves.figures(study):
        against = figure.name.removeprefix("learning-")
        blocks += doc.folded(f"The same against {against}", figure) if blocks else [figure]
    logged = signals.figure(study)
    more = (doc.Heading("Reward terms, length, entropy and more"), logged) if logged else None
    return doc.section("training", "During training", blocks, more)


def _written(study: StudyRecord) -> list[doc.Piece]:
    analysis, samples = study.analysis, study.runs.samples
    names: dict[str, tuple[str, int | None]] = {"": ("base", None)}
    names |= {arm.slug: (arm.name, family(analysis, arm).series) for arm in analysis.arms}
    found: list[doc.Piece] = []
    for problem in samples.problems:
        columns = [
            doc.Written(*name, (doc.Sample(text.completion, "right" if text.strict else "wrong"),))
            for slug, name in names.items()
            if (text := problem.texts.get(slug)) is not None
        ]
        found.append(doc.SideBySide(problem.question, tuple(columns), problem.gold))
    return [doc.Text(samples.rule, note=True), *found] if found else []


def _failures(study: StudyRecord) -> list[doc.Piece]:
    found = [f"`{arm.name}`: {text}" for arm in study.analysis.arms for text in arm.failed]
    note = doc.Text("Runs that ended without a result.", note=True)
    return [note, doc.Bullets(tuple(found))] if found else []


def _method(study: StudyRecord) -> doc.Section:
    analysis = study.analysis
    tests = tables.tests(analysis)
    title = "Proof of what was trained, one seed of each arm"
    found = ((a.name, study.curves[a.slug].change_proof) for a in arm_curves.arms(study))
    return doc.section(
        "method",
        "How the numbers are made",
        (doc.Text(text) for text in method.paragraphs(analysis)),
        (doc.Text(note, note=True) for note in analysis.notes),
        doc.folded(tests.name if tests else "", tests, doc.Text(TESTS, note=True)),
        doc.folded(title, sections.proofs(title, found)),
    )


def _settings(study: StudyRecord) -> doc.Section:
    shown = arm_curves.arms(study)
    configs = [study.curves[arm.slug].config for arm in shown]
    alike, differing = sections.compare(configs or [study.settings.get("config", {})])
    every = study.analysis.arms  # a copy without runs has what each arm sets
    names = dict.fromkeys(name for arm in every for name in arm.settings)
    own = {name: [str(arm.settings.get(name, NONE)) for arm in every] for name in names}
    design = {k: v for k, v in study.settings.items() if k not in ("arms", "config", "question")}
    return doc.section(
        "settings",
        "Settings",
        _by_arm("Settings in which the arms differ", shown, differing)
        if shown
        else _by_arm("What the arms set", every, own),
        sections.shared("The same in all arms", alike),
        sections.shared("The study", design),
    )


def _by_arm(
    name: str, arms: Sequence[ArmResult], columns: Mapping[str, Sequence[str]]
) -> doc.Table | None:
    """A row an arm; every column has a text for each."""
    cells = zip(arms, *columns.values(), strict=True)
    rows = [[doc.TableCell(arm.name, code=True), *texts] for arm, *texts in cells]
    return doc.table(name, ("arm", *columns), rows, wrap=True, plain=True) if columns else None


def _versions(study: StudyRecord) -> doc.Section:
    several, found = study.runs.environments, sections.shared("", study.runs.environment)
    many = f"The runs recorded {several} different environments; this is the first."
    note = doc.Text(many if several > 1 else "As the first run recorded them.", note=True)
    return doc.section("versions", "Versions and machine", note if found else None, found)
