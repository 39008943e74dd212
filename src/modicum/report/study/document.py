"""What the report of a study says, and its tables: arms, what they cost, the tests of the verdicts."""

from modicum.report import document as doc
from modicum.report.document import Builder, Table, TableCell
from modicum.report.figures import accuracy, arm_curves, changes, forest, frontier
from modicum.report.study.read import StudyRecord, family, ranked
from modicum.report.words import NONE, say
from modicum.results import Analysis, ArmResult

METHOD = ("data", "difference", "margin", "retention", "not_claimed")  # sections of words.txt


def document(study: StudyRecord, title: str) -> doc.Document:
    """All that is to be said about the study."""
    analysis, report = study.analysis, Builder()
    arms = table("The arms, the best first", "arm.txt", analysis, wrap=True)
    report.section("result", "Result", forest.differences(analysis), arms)
    report.note("ratios", analysis=analysis)
    said = [say("arm", arm=arm) for arm in ranked(analysis)]
    if said := [text for text in said if not text.endswith("`:")]:
        report.fold("The arms in words", doc.Bullets(tuple(said)))
    report.section("cost", "Accuracy and cost", *frontier.figures(analysis))
    costs = table("What the arms cost", "cost.txt", analysis, plain=True)
    report.fold("What the arms cost, in numbers", costs, "means")
    levels, rows = accuracy.levels(analysis), accuracy.rows(analysis)
    what = say("arm_difficulty", analysis=analysis)
    figure = accuracy.by_difficulty(levels, rows, what, bold=analysis.control)
    report.section("difficulty", "By difficulty", figure)
    curves = arm_curves.figures(study)
    main = 2 if curves and curves[0].name == "learning-together" else 1
    report.section("training", "During training", *curves[:main])
    for figure in curves[main:]:
        report.fold(f"The same against {figure.name.removeprefix('learning-')}", figure)
    if signals := arm_curves.signals(study):
        report.add(doc.Heading("Reward terms, length, entropy and more"), signals)
    report.section("tuning", "Tuning", arm_curves.tuning(analysis))
    _weights(report, study)
    report.section("written", "What the models wrote")
    if study.runs.samples.problems:
        report.add(doc.Text(study.runs.samples.rule, note=True), _written(study))
    report.section("failures", "What failed")
    if failed := [f"`{arm.name}`: {text}" for arm in analysis.arms for text in arm.failed]:
        report.note("failures")
        report.add(doc.Bullets(tuple(failed)))
    texts = (doc.Text(say(name, analysis=analysis)) for name in METHOD)
    report.section("method", "How the numbers are made", *texts)
    report.add(*(doc.Text(note, note=True) for note in analysis.notes))
    if (tests := tests_table(analysis)) is not None:
        report.fold(tests.name, tests, "tests")
    what = "Proof of what was trained, one seed of each arm"
    proven = ((a.name, study.curves[a.slug].change_proof) for a in arm_curves.arms(study))
    report.fold(what, doc.proofs(what, proven))
    _settings(report, study)
    report.section("versions", "Versions and machine")
    if study.runs.environment:
        report.note("versions", several=study.runs.environments)
        report.values("", study.runs.environment)
    report.repeat(analysis.repeat)
    absent = [a.name for a in analysis.arms if a.folders and a.slug not in study.curves]
    absent = absent if study.curves else absent and ["any arm"]
    notes = filter(None, (say("facts", analysis=analysis), say("missing", absent=absent)))
    said = (title, analysis.question, analysis.conclusion, tuple(notes))
    return doc.Document(*said, report.sections(), study.files)


def _weights(report: Builder, study: StudyRecord) -> None:
    known = ((arm, study.curves[arm.slug].anatomy) for arm in arm_curves.arms(study))
    found = [(arm, anatomy) for arm, anatomy in known if anatomy is not None]
    seeds = {anatomy.seed for _, anatomy in found}
    which = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed that finished"
    figure = changes.figure([(arm.name, anatomy) for arm, anatomy in found], which)
    report.section("weights", "What changed in the weights", figure)
    measured = changes.measures([anatomy for _, anatomy in found], few=True)
    names = [arm_cell(study.analysis, arm) for arm, _ in found]
    numbers = doc.across("What training changed in the weights", measured, names, "arm")
    report.fold("The changes in numbers", numbers, "arm_weights")


def _written(study: StudyRecord) -> doc.Browsed | None:
    problems, arms = study.runs.samples.problems, ranked(study.analysis)
    arms.sort(key=lambda arm: arm.name != study.analysis.control)
    looks: list[tuple[str, str, int | None]] = [("", "base", None)]
    looks += [(arm.slug, arm.name, family(study.analysis, arm).series) for arm in arms]
    texts = {s: {p.question: [p.texts[s]] for p in problems if s in p.texts} for s, *_ in looks}
    sides = [(name, series, texts[slug]) for slug, name, series in looks]
    return doc.browsed([(p.question, p.question, p.gold) for p in problems], sides)


def _settings(report: Builder, study: StudyRecord) -> None:
    shown, every = arm_curves.arms(study), study.analysis.arms
    configs = [study.curves[arm.slug].config for arm in shown]
    alike, differing = doc.compare(configs or [study.settings.get("config", {})])
    title, measures = "Settings in which the arms differ", list(differing.items())
    if not shown:  # a copy without runs has what each arm sets
        keys = dict.fromkeys(name for arm in every for name in arm.settings)
        own = [(key, tuple(str(arm.settings.get(key, NONE)) for arm in every)) for key in keys]
        title, measures = "What the arms set", own
    names = [TableCell(arm.name, code=True) for arm in shown or every]
    report.section("settings", "Settings", doc.across(title, measures, names, "arm", wrap=True))
    report.values("The same in all arms", alike, usual=True)
    design = {k: v for k, v in study.settings.items() if k not in ("arms", "config", "question")}
    report.fold("The settings of the study", doc.Values("", doc.flattened(design)))


def table(title: str, template: str, analysis: Analysis, **how: bool) -> Table:
    """A row for each arm, the best first, with the columns that a template makes of it."""
    columns = {"arm": [arm_cell(analysis, arm) for arm in ranked(analysis)]}
    columns |= doc.sortable(template, ranked(analysis), analysis=analysis)
    return doc.table(title, list(columns), zip(*columns.values(), strict=True), **how)


def tests_table(analysis: Analysis) -> Table | None:
    """The p-values behind the verdicts, as they are and after Holm; None without any."""
    if not (arms := [arm for arm in ranked(analysis) if arm.tests]):
        return None
    columns = {"arm": [TableCell(arm.name, code=True) for arm in arms]}
    columns |= doc.sortable("tests.txt", arms, margin=100 * analysis.margin)
    title = "p-values of the tests, in brackets after Holm"
    return doc.table(title, list(columns), zip(*columns.values(), strict=True), plain=True)


def arm_cell(analysis: Analysis, arm: ArmResult) -> TableCell:
    """The name of an arm, with the colour of its family."""
    return TableCell(arm.name, series=family(analysis, arm).series, code=True)
