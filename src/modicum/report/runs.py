"""What the report of runs says."""

import shlex
from collections.abc import Mapping, Sequence

from modicum.report import document as doc
from modicum.report import held, sections, tables
from modicum.report.figures import accuracy, changes, cost, learning, levels
from modicum.report.html import printable
from modicum.report.numbers import ARROW, NONE, count, decimal, percent, share
from modicum.report.read import HeldCompletion, LoggedSample, RunRecord, colours, labels
from modicum.report.tables import RunRow
from modicum.status import Status

SAMPLES_SHOWN = 2
RUNS_SHOWN = 6
INTERVALS = (
    "The samples of one problem are averaged to one score; the interval is Wilson's 95% interval"
    " of the mean of these scores over problems, for as many problems as their spread is worth."
    " So several samples of a problem do not count as independent evidence. Greedy accuracy is one completion per problem, without"
    " sampling, and is shown beside it, not as the main figure."
)
LUCK = (
    "The intervals cover the choice of problems and the noise of sampling, but not the luck of a"
    " training seed"
)
ONE_SEED = (
    f"There is one run per update. {LUCK}: they compare these trained models, not the methods."
    " Overlapping intervals do not show that two updates are equal."
)
WEIGHTS = (
    "The trained model, adapters merged, against the base, in fp32 (of a bf16 run: the weights as"
    " the model holds them, not the masters); a tied tensor counts once. An entry shows in bf16"
    " when it still differs after both are rounded. The effective rank is exp of the entropy of"
    " the singular values of a change: 1 for one direction, the smaller side of the matrix for as"
    " many equal ones; means over the matrices of a part."
)


def document(records: Sequence[RunRecord], title: str) -> doc.Document:
    """All that is to be said about `records`."""
    rows, names = tables.results(records), labels(records)
    groups = held.groups(records)
    bases = sorted({row.result.base.accuracy for row in rows if row.result.base is not None})
    curves = learning.table(records, names)
    fold = doc.folded(
        "The curves in numbers",
        curves,
        doc.Text("Means over the first and over the last tenth of the steps.", note=True),
    )
    proven = sections.proofs("", ((row.label, row.result.change_proof) for row in rows))
    unfinished = [
        f"{n}, {Status(r.folder).so_far}"
        for n, r in zip(names, records, strict=True)
        if r.result is None
    ]
    scores = held.levels(groups[0]) if len(groups) == 1 else []
    ran = [names[number] for number in groups[0].runs] if scores else []
    hard = (levels.figure(scores, ran), levels.table(scores, ran))
    shown = (
        _results(rows),
        doc.section("difficulty", "By difficulty", *hard),
        doc.section("training", "During training", learning.figures(records, bases), fold),
        doc.section("written", "What the model wrote", _written(records, names, groups)),
        _weights(rows),
        doc.section("proof", "Proof of what was trained", proven),
        doc.section("intervals", "How the intervals are computed", _intervals(rows)),
        _settings("settings", "Settings", [record.config for record in records], names),
        _settings("versions", "Versions", [record.environment for record in records], names),
        sections.repeat([_repeat(record) for record in records]),
    )
    return doc.Document(
        title=title,
        headline=headline(rows),
        conclusion="",
        notes=(f"No result yet: {'; '.join(unfinished)}.",) if unfinished else (),
        sections=tuple(found for found in shown if found.blocks),
    )


def headline(rows: Sequence[RunRow]) -> str:
    """One sentence: what was trained, and from where to where held-out accuracy went."""
    done = [row for row in rows if row.result.base and row.result.trained]
    if not done:
        return ""
    first = done[0].result
    bases = {percent(row.scores("accuracy")[0]) for row in done}
    same = len({(row.result.task, row.result.model) for row in done}) == 1
    what = f"held-out accuracy on {first.task}" if same and first.task else "held-out accuracy"
    subject = f"Training {first.model}" if same and first.model else "Training"
    reached = [(row.scores("accuracy")[1], row) for row in done]
    if len(done) > 4 and len(bases) == 1:
        reached.sort(key=lambda found: found[0])
        (low, worst), (high, best) = reached[0], reached[-1]
        return (
            f"{subject} in {len(done)} runs took {what} from {bases.pop()}% to between"
            f" {percent(low)}% ({worst.label}) and {percent(high)}% ({best.label})."
        )
    clauses: list[str] = []
    for number, (end, row) in enumerate(reached):
        again = number and len(bases) == 1
        start = "" if again else f"from {percent(row.scores('accuracy')[0])}% "
        trained = share(row.share) + (" of the parameters trained" if not number else "")
        clauses.append(f"{start}to {percent(end)}% with {row.label} ({trained})")
    joined = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
    return f"{subject} took {what} {joined}."


def _results(rows: Sequence[RunRow]) -> doc.Section:
    if not rows:
        return doc.section("results", "Results")
    sizes = "; ".join(sorted({_size(row) for row in rows} - {""}))
    note = (
        doc.Text(f"Base → trained, on held-out problems ({sizes}).", note=True) if sizes else None
    )
    details = doc.across("In more detail", _details(rows), [row.label for row in rows])
    more = (doc.Heading("In more detail"), details) if details else ()
    figures = (accuracy.figure(rows), cost.figure(rows))
    return doc.section("results", "Results", tables.table(rows), note, *figures, *more)


def _size(row: RunRow) -> str:
    score = row.result.trained or row.result.base
    if score is None or not score.num_problems:
        return ""
    many = score.samples_per_problem
    return f"{score.num_problems:,} problems" + (f", {many} samples each" if many else "")


def _details(rows: Sequence[RunRow]) -> list[tuple[str, list[str]]]:
    """Further measures, name -> a text for each run; those that no run has are left out."""
    gaps = [row.result.agreement_max for row in rows]
    measures = {
        "Accuracy, lenient reading (%)": [row.change("lenient") for row in rows],
        "Answer in the asked format (%)": [row.change("format") for row in rows],
        "Cut at the length limit (%)": [row.change("truncated") for row in rows],
        "Generated tokens": [count(row.result.generated_tokens) for row in rows],
        "Sampling (seconds per step)": [decimal(r.mean("time/sampling_seconds")) for r in rows],
        "Training (seconds per step)": [decimal(r.mean("time/training_seconds")) for r in rows],
        "Largest gap, sampler to trainer (nats)": [
            NONE if gap is None else f"{gap:.2g}" for gap in gaps
        ],
    }
    missing = {NONE, NONE + ARROW + NONE}
    return [(name, texts) for name, texts in measures.items() if set(texts) - missing]


def _written(
    records: Sequence[RunRecord], names: Sequence[str], groups: Sequence[held.HeldGroup]
) -> list[doc.Piece]:
    """What was written on held-out problems; of runs without those, training samples."""
    answers = [block for group in groups for block in _answers(group, names, colours(records))]
    answered = {number for group in groups for number in group.runs}
    ends: list[doc.Piece] = [
        doc.SideBySide(name, _ends(record.samples), series=colour)
        for n, (name, colour, record) in enumerate(
            zip(names, colours(records), records, strict=True)
        )
        if n not in answered and record.samples
    ]
    left_out = sum(len(group.runs[RUNS_SHOWN:]) for group in groups) + len(ends[RUNS_SHOWN:])
    notes = (
        "The first held-out problems, each with its first sample; not selected.",
        "The first completions logged at the earliest and at the latest step of training; not"
        " selected.",
        f"{left_out} more runs are left out here.",
    )
    held_out, training, more = (doc.Text(note, note=True) for note in notes)
    return [
        *([held_out] if answers else []),
        *answers,
        *([training] if ends else []),
        *ends[:RUNS_SHOWN],
        *([more] if left_out else []),
    ]


def _answers(group: held.HeldGroup, names: Sequence[str], series: Sequence[int]) -> list[doc.Piece]:
    """The first problems, each with the first sample of the base and of the first runs."""
    sides: list[tuple[str, int | None, Mapping[str, HeldCompletion]]]
    sides = [("base", None, held.first(group.base))]
    for number, rows in list(zip(group.runs, group.trained, strict=True))[:RUNS_SHOWN]:
        sides.append((names[number], series[number], held.first(rows)))
    made: list[doc.Piece] = []
    for key, row in sides[-1][2].items():
        columns = tuple(
            doc.Written(name, kind, (doc.Sample(rows[key].completion, rows[key].about),))
            for name, kind, rows in sides
            if key in rows
        )
        made.append(doc.SideBySide(row.question, columns, row.gold))
    return made


def _ends(samples: Sequence[LoggedSample]) -> tuple[doc.Written, ...]:
    """The first completions logged at the earliest and at the latest step, by step."""
    steps = sorted({sample.step for sample in samples})
    made = []
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        found = [x for x in samples if x.step == step][:SAMPLES_SHOWN]
        shown = (doc.Sample(x.completion, _about(x), x.question, x.gold) for x in found)
        made.append(doc.Written(f"Step {step}", None, tuple(shown)))
    return tuple(made)


def _about(sample: LoggedSample) -> str:
    """The reward and its terms in a line."""
    known = [] if sample.reward is None else [f"reward {sample.reward:.2f}"]
    for term, score in sample.scores.items():
        shown = f"{score:.2f}" if isinstance(score, int | float) else str(score)
        known.append(f"{printable(str(term))} {printable(shown, 100)}")
    return " · ".join(known)


def _weights(rows: Sequence[RunRow]) -> doc.Section:
    measured = changes.measures([row.result.anatomy for row in rows])
    numbers = doc.across("What changed in the weights", measured, [row.label for row in rows])
    # One run of each update: its seeds look alike.
    firsts = {row.colour: row for row in reversed(rows)}
    shown = [(row.label, row.result.anatomy) for _, row in sorted(firsts.items())]
    blocks = (changes.figure(shown), numbers, doc.Text(WEIGHTS, note=True)) if numbers else ()
    return doc.section("weights", "What changed in the weights", *blocks)


def _intervals(rows: Sequence[RunRow]) -> list[doc.Piece]:
    if not rows:
        return []
    one_seed = len({row.colour for row in rows}) == len(rows) > 1
    return [doc.Text(INTERVALS), doc.Text(ONE_SEED if one_seed else f"{LUCK}.")]


def _settings(
    id: str, title: str, configs: Sequence[Mapping[str, object]], names: Sequence[str]
) -> doc.Section:
    alike, differing = sections.compare(configs)
    different = doc.across(f"{title} that differ", list(differing.items()), names)
    same = "The same in all runs" if len(names) > 1 else ""
    return doc.section(id, title, different, sections.shared(same, alike))


def _repeat(record: RunRecord) -> str:
    config = shlex.quote(str(record.folder / "config.toml"))
    out = shlex.quote(f"{record.folder}-again")
    return f"modicum train --config {config} --out {out}"
