"""What the report of a study says."""

from collections.abc import Mapping, Sequence

from modicum.report import document as doc
from modicum.report import sections
from modicum.report.figures import arm_curves, changes, difficulty, forest, frontier, tuning
from modicum.report.numbers import NONE
from modicum.report.study import tables
from modicum.report.study.families import family, ranked
from modicum.report.study.read import StudyRecord
from modicum.report.words import say
from modicum.results import Analysis, ArmResult

METHOD = ("data", "difference", "margin", "retention", "not_claimed")  # sections of words.txt


def document(study: StudyRecord, title: str) -> doc.Document:
    """All that is to be said about the study."""
    analysis = study.analysis
    absent = [a.name for a in analysis.arms if a.folders and a.slug not in study.curves]
    absent = absent if study.curves else absent and ["any arm"]
    return doc.Document(
        title=title,
        headline=analysis.question,
        conclusion=analysis.conclusion,
        notes=(
            say("facts", analysis=analysis),
            say("missing", absent=absent) if absent else "",
        ),
        sections=doc.filled(
            doc.section(
                "result",
                "Result",
                forest.figure(analysis),
                tables.arms(analysis),
                doc.note("ratios"),
                _in_words(analysis),
            ),
            doc.section(
                "cost",
                "Accuracy and cost",
                frontier.figures(analysis),
                doc.folded(
                    "What the arms cost, in numbers", tables.costs(analysis), doc.note("means")
                ),
            ),
            doc.section(
                "difficulty",
                "By difficulty",
                difficulty.figure(
                    difficulty.levels(analysis),
                    difficulty.rows(analysis),
                    f"{analysis.primary.capitalize()} (%) by the difficulty of the {analysis.split} problems, mean over seeds",
                    bold=analysis.control,
                ),
            ),
            doc.section("training", "During training", _training(study)),
            doc.section("tuning", "Tuning", tuning.figure(analysis)),
            doc.section("weights", "What changed in the weights", _weights(study)),
            doc.section("written", "What the models wrote", _written(study)),
            doc.section("failures", "What failed", _failures(analysis)),
            doc.section("method", "How the numbers are made", _method(study)),
            doc.section("settings", "Settings", _settings(study)),
            doc.section("versions", "Versions and machine", _versions(study)),
            sections.repeat(analysis.repeat),
        ),
    )


def _in_words(analysis: Analysis) -> list[doc.Piece]:
    said = []
    for arm in ranked(analysis):
        words = [arm.sentence] if arm.sentence else []
        if arm.retention is None and arm.retention_note:
            words.append(f"No retention: {arm.retention_note}.")
        if arm.seeds_needed is not None and f"{arm.seeds_needed} seeds" not in arm.sentence:
            words.append(f"About {arm.seeds_needed} seeds would decide it.")
        # A sentence that names its arm needs no name before it.
        name = "" if f"`{arm.name}`" in arm.sentence else f"`{arm.name}`: "
        said += [name + " ".join(words)] if words else []
    return [doc.Heading("The arms in words"), doc.Bullets(tuple(said))] if said else []


def _training(study: StudyRecord) -> list[doc.Piece]:
    blocks: list[doc.Piece] = []
    for figure in arm_curves.figures(study):
        against = f"The same against {figure.name.removeprefix('learning-')}"
        blocks.append(doc.Folded(against, (figure,)) if blocks else figure)
    logged = arm_curves.signals(study)
    more = [doc.Heading("Reward terms, length, entropy and more"), logged] if logged else []
    return [*blocks, *more]


def _weights(study: StudyRecord) -> list[doc.Piece | None]:
    known = ((arm, study.curves[arm.slug].anatomy) for arm in arm_curves.arms(study))
    found = [(arm, anatomy) for arm, anatomy in known if anatomy is not None]
    seeds = {anatomy.seed for _, anatomy in found}
    which = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed that finished"
    cells = [(tables.name(study.analysis, arm), anatomy) for arm, anatomy in found]
    fold = doc.folded("The changes in numbers", changes.table(cells), doc.note("arm_weights"))
    return [changes.figure([(arm.name, a) for arm, a in found], which), fold] if fold else []


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


def _failures(analysis: Analysis) -> list[doc.Piece]:
    found = [f"`{arm.name}`: {text}" for arm in analysis.arms for text in arm.failed]
    return [doc.note("failures"), doc.Bullets(tuple(found))] if found else []


def _method(study: StudyRecord) -> list[doc.Piece | None]:
    """How the numbers are made and what they do not say, in the study's own numbers."""
    analysis, tests = study.analysis, tables.tests(study.analysis)
    both = analysis.variance
    parts = () if both is None else (both.seed, both.problem)
    tries = sorted({len(arm.tries) for arm in analysis.arms} - {0})
    values = {
        "analysis": analysis,
        "methods": sorted({a.difference.method for a in analysis.arms if a.difference} - {""}),
        "sizes": [f"{100 * max(part, 0) ** 0.5:.1f}" for part in parts],
        "tries": " to ".join(str(count) for count in dict.fromkeys((*tries[:1], *tries[-1:]))),
    }
    title = "Proof of what was trained, one seed of each arm"
    proven = ((a.name, study.curves[a.slug].change_proof) for a in arm_curves.arms(study))
    return [
        *(doc.Text(say(name, **values)) for name in METHOD),
        *(doc.Text(note, note=True) for note in analysis.notes),
        doc.folded(tests.name if tests else "", tests, doc.note("tests")),
        doc.folded(title, sections.proofs(title, proven)),
    ]


def _settings(study: StudyRecord) -> list[doc.Piece | None]:
    shown = arm_curves.arms(study)
    configs = [study.curves[arm.slug].config for arm in shown]
    alike, differing = sections.compare(configs or [study.settings.get("config", {})])
    every = study.analysis.arms  # a copy without runs has what each arm sets
    names = dict.fromkeys(name for arm in every for name in arm.settings)
    own = {name: [str(arm.settings.get(name, NONE)) for arm in every] for name in names}
    design = {k: v for k, v in study.settings.items() if k not in ("arms", "config", "question")}
    return [
        _by_arm("Settings in which the arms differ", shown, differing)
        if shown
        else _by_arm("What the arms set", every, own),
        sections.shared("The same in all arms", alike),
        sections.shared("The study", design),
    ]


def _by_arm(
    name: str, arms: Sequence[ArmResult], columns: Mapping[str, Sequence[str]]
) -> doc.Table | None:
    """A row an arm; every column has a text for each."""
    cells = zip(arms, *columns.values(), strict=True)
    rows = [[doc.TableCell(arm.name, code=True), *texts] for arm, *texts in cells]
    return doc.table(name, ("arm", *columns), rows, wrap=True, plain=True) if columns else None


def _versions(study: StudyRecord) -> list[doc.Piece]:
    found = sections.shared("", study.runs.environment)
    return [doc.note("versions", several=study.runs.environments), found] if found else []
