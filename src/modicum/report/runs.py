"""What the report of runs says."""

import shlex
from collections.abc import Sequence

from modicum.report import document as doc
from modicum.report import read, tables
from modicum.report.document import Builder
from modicum.report.figures import accuracy, changes, curves, frontier
from modicum.report.read import HeldGroup, LoggedSample, RunRecord, colours, labels
from modicum.report.tables import RunRow
from modicum.report.words import say
from modicum.status import Status

SAMPLES_SHOWN = 2
RUNS_SHOWN = 6


def document(records: Sequence[RunRecord], title: str) -> doc.Document:
    """All that is to be said about `records`."""
    rows, names, report = tables.results(records), labels(records), Builder()
    groups = read.held_groups(records)
    report.section("results", "Results", tables.table(rows) if rows else None)
    scores = [s for row in rows if (s := row.result.trained or row.result.base) is not None]
    if sizes := sorted({say("size", score=score) for score in scores if score.num_problems}):
        report.note("base_to_trained", sizes="; ".join(sizes))
    report.add(accuracy.figure(rows), frontier.figure(rows))
    measures = [of for of in doc.measured("details.txt", rows) if set(of[1]) - tables.MISSING]
    if details := doc.across("In more detail", measures, [row.label for row in rows]):
        report.add(doc.Heading("In more detail"), details)
    report.section("difficulty", "By difficulty")
    if len(groups) == 1:
        by_level = read.by_difficulty(groups[0], names)
        what = "Accuracy (%) by the difficulty of the held-out problems"
        report.add(accuracy.by_difficulty(*by_level, what))
    bases = sorted({row.result.base.accuracy for row in rows if row.result.base is not None})
    report.section("training", "During training", *curves.figures(records, bases))
    report.add(curves.gold(dict(zip(names, records, strict=True))))
    report.fold("The curves in numbers", curves.table(records, names), "tenths")
    _written(report, records, names, groups)
    report.section("weights", "What changed in the weights")
    measured = changes.measures([row.result.anatomy for row in rows])
    if numbers := doc.across("What changed in the weights", measured, [r.label for r in rows]):
        # One run of each update: its seeds look alike.
        firsts = {row.colour: (row.label, row.result.anatomy) for row in reversed(rows)}
        report.add(changes.figure([firsts[colour] for colour in sorted(firsts)]), numbers)
        report.note("weights")
    proofs = doc.proofs("", ((row.label, row.result.change_proof) for row in rows))
    report.section("proof", "Proof of what was trained", proofs)
    report.section("intervals", "How the intervals are computed")
    if rows:
        one_seed = len({row.colour for row in rows}) == len(rows) > 1
        report.add(doc.Text(say("intervals")), doc.Text(say("luck", one_seed=one_seed)))
    kinds = {"Settings": [r.config for r in records], "Versions": [r.environment for r in records]}
    for name, found in kinds.items():
        alike, differing = doc.compare(found)
        different = doc.across(f"{name} that differ", list(differing.items()), names)
        report.section(name.lower(), name, different)
        report.values("The same in all runs" if len(names) > 1 else "", alike, name == "Settings")
    command = "modicum train --config {} --out {}"
    again = [(str(r.folder / "config.toml"), f"{r.folder}-again") for r in records]
    report.repeat([command.format(*map(shlex.quote, places)) for places in again])
    pairs = zip(names, records, strict=True)
    unfinished = [f"{n}, {Status(r.folder).so_far}" for n, r in pairs if r.result is None]
    notes = filter(None, (say("unfinished", found=unfinished), say("unequal", rows=rows)))
    files = ("result.json", "metrics.jsonl", "samples.jsonl", "config.toml")
    data = tuple(r.folder / name for r in records for name in files)
    return doc.Document(title, headline(rows), "", tuple(notes), report.sections(), data)


def headline(rows: Sequence[RunRow]) -> str:
    """One sentence: what was trained, and from where to where held-out accuracy went."""
    return say("headline", rows=[r for r in rows if r.result.base and r.result.trained])


def _written(
    report: Builder, records: Sequence[RunRecord], names: Sequence[str], groups: Sequence[HeldGroup]
) -> None:
    series, answers = colours(records), list[doc.Browsed | None]()
    for group in groups:
        runs = list(zip(group.runs, group.trained, strict=True))[:RUNS_SHOWN]
        sides = [("base", None, read.by_problem(group.base))]
        sides += [(names[n], series[n], read.by_problem(rows)) for n, rows in runs]
        problems = [(key, of[0].question, of[0].gold) for key, of in sides[-1][2].items()]
        answers.append(doc.browsed(problems, sides))
    answered = {number for group in groups for number in group.runs}
    others = [n for n, record in enumerate(records) if n not in answered and record.samples]
    ends = [doc.SideBySide(names[n], _ends(records[n].samples), series=series[n]) for n in others]
    report.section("written", "What the model wrote")
    if answers:
        report.note("first_held")
        report.add(*answers)
    if ends:
        report.note("first_logged")
        report.add(*ends[:RUNS_SHOWN])
    runs = sum(len(group.runs[RUNS_SHOWN:]) for group in groups) + len(ends[RUNS_SHOWN:])
    if runs:
        report.note("left_out", runs=runs)


def _ends(samples: Sequence[LoggedSample]) -> tuple[doc.Written, ...]:
    steps = sorted({sample.step for sample in samples})
    made = []
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        found = [x for x in samples if x.step == step][:SAMPLES_SHOWN]
        shown = (doc.Sample(x.completion, say("about", of=x), x.question, x.gold) for x in found)
        made.append(doc.Written(f"Step {step}", None, tuple(shown)))
    return tuple(made)
