"""What the report of a study says."""

from modicum.report import document as doc
from modicum.report.document import Builder
from modicum.report.figures import accuracy, arm_curves, changes, forest, frontier
from modicum.report.study import tables
from modicum.report.study.families import family, ranked
from modicum.report.study.read import StudyRecord
from modicum.report.words import NONE, say

METHOD = ("data", "difference", "margin", "retention", "not_claimed")  # sections of words.txt


def document(study: StudyRecord, title: str) -> doc.Document:
    """All that is to be said about the study."""
    analysis, report = study.analysis, Builder()
    report.section("result", "Result", forest.figure(analysis), tables.arms(analysis))
    report.note("ratios")
    said = [say("arm", arm=arm) for arm in ranked(analysis)]
    if said := [text for text in said if not text.endswith("`:")]:
        report.add(doc.Heading("The arms in words"), doc.Bullets(tuple(said)))
    report.section("cost", "Accuracy and cost", *frontier.figures(analysis))
    report.fold("What the arms cost, in numbers", tables.costs(analysis), "means")
    levels, rows = accuracy.levels(analysis), accuracy.rows(analysis)
    problems = f"{analysis.split} problems, mean over seeds"
    what = f"{analysis.primary.capitalize()} (%) by the difficulty of the {problems}"
    figure = accuracy.by_difficulty(levels, rows, what, bold=analysis.control)
    report.section("difficulty", "By difficulty", figure)
    curves = arm_curves.figures(study)
    report.section("training", "During training", *curves[:1])
    for figure in curves[1:]:
        report.fold(f"The same against {figure.name.removeprefix('learning-')}", figure)
    if signals := arm_curves.signals(study):
        report.add(doc.Heading("Reward terms, length, entropy and more"), signals)
    report.section("tuning", "Tuning", arm_curves.tuning(analysis))
    _weights(report, study)
    report.section("written", "What the models wrote")
    if study.runs.samples.problems:
        report.add(doc.Text(study.runs.samples.rule, note=True), *_written(study))
    report.section("failures", "What failed")
    if failed := [f"`{arm.name}`: {text}" for arm in analysis.arms for text in arm.failed]:
        report.note("failures")
        report.add(doc.Bullets(tuple(failed)))
    _method(report, study)
    _settings(report, study)
    report.section("versions", "Versions and machine")
    if study.runs.environment:
        report.note("versions", several=study.runs.environments)
        report.values("", study.runs.environment)
    report.repeat(analysis.repeat)
    absent = [a.name for a in analysis.arms if a.folders and a.slug not in study.curves]
    absent = absent if study.curves else absent and ["any arm"]
    facts = say("facts", analysis=analysis)
    notes = (facts, say("missing", absent=absent)) if absent else (facts,)
    return doc.Document(title, analysis.question, analysis.conclusion, notes, report.sections())


def _weights(report: Builder, study: StudyRecord) -> None:
    known = ((arm, study.curves[arm.slug].anatomy) for arm in arm_curves.arms(study))
    found = [(arm, anatomy) for arm, anatomy in known if anatomy is not None]
    seeds = {anatomy.seed for _, anatomy in found}
    which = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed that finished"
    figure = changes.figure([(arm.name, anatomy) for arm, anatomy in found], which)
    report.section("weights", "What changed in the weights", figure)
    measured = changes.measures([anatomy for _, anatomy in found], few=True)
    names = [tables.name(study.analysis, arm) for arm, _ in found]
    table = doc.across("What training changed in the weights", measured, names, "arm")
    report.fold("The changes in numbers", table, "arm_weights")


def _written(study: StudyRecord) -> list[doc.SideBySide]:
    problems, arms = study.runs.samples.problems, study.analysis.arms
    looks = [("", "base", None)]
    looks += [(arm.slug, arm.name, family(study.analysis, arm).series) for arm in arms]
    sides: list[tuple[str, int | None, doc.Texts]] = [
        (name, series, {p.question: p.texts[slug] for p in problems if slug in p.texts})
        for slug, name, series in looks
    ]
    return doc.side_by_side([(p.question, p.question, p.gold) for p in problems], sides)


def _method(report: Builder, study: StudyRecord) -> None:
    analysis = study.analysis
    texts = (doc.Text(say(name, analysis=analysis)) for name in METHOD)
    report.section("method", "How the numbers are made", *texts)
    report.add(*(doc.Text(note, note=True) for note in analysis.notes))
    if (tests := tables.tests(analysis)) is not None:
        report.fold(tests.name, tests, "tests")
    title = "Proof of what was trained, one seed of each arm"
    proven = ((a.name, study.curves[a.slug].change_proof) for a in arm_curves.arms(study))
    report.fold(title, report.proofs(title, proven))


def _settings(report: Builder, study: StudyRecord) -> None:
    shown, every = arm_curves.arms(study), study.analysis.arms
    configs = [study.curves[arm.slug].config for arm in shown]
    alike, differing = doc.compare(configs or [study.settings.get("config", {})])
    title, measures = "Settings in which the arms differ", list(differing.items())
    if not shown:  # a copy without runs has what each arm sets
        keys = dict.fromkeys(name for arm in every for name in arm.settings)
        own = [(key, tuple(str(arm.settings.get(key, NONE)) for arm in every)) for key in keys]
        title, measures = "What the arms set", own
    names = [doc.TableCell(arm.name, code=True) for arm in shown or every]
    report.section("settings", "Settings", doc.across(title, measures, names, "arm", wrap=True))
    report.values("The same in all arms", alike)
    design = {k: v for k, v in study.settings.items() if k not in ("arms", "config", "question")}
    report.values("The study", design)
