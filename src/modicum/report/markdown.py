"""The report of runs as Markdown: the page's content, with links to its figures."""

from __future__ import annotations

from collections.abc import Iterator

from modicum.report import frame
from modicum.report.content import Content, Ends, Settings, about
from modicum.report.frame import Table


def render(found: Content, figures: str) -> str:
    """The whole text; `figures` is the folder of the figures, relative to it."""

    def drawn(*names: str) -> list[str]:
        there = [figure for figure in found.figures if figure.name in names]
        return [frame.markdown_figure(figure, figures) for figure in there]

    size = [f"Base → trained, on held-out problems ({found.size}).\n"] if found.size else []
    parts = {
        "Results": [
            *_tables(found.results),
            *size,
            *drawn("accuracy", "cost"),
            *_tables(found.details),
        ],
        "By difficulty": [*drawn("difficulty"), *_tables(found.levels)],
        "During training": [*drawn("learning", "training"), *_tables(found.curves)],
        "What the model wrote": [*_answers(found), *_samples(found.samples), *_more(found)],
        "What changed in the weights": [*drawn("changes"), *_tables(found.changes)],
        "Proof of what was trained": [
            f"- {frame.code(name)}: {frame.escaped(proof)}\n" for name, proof in found.proofs
        ],
        "How the intervals are computed": [f"{text}\n" for text in found.intervals],
        "Settings": _settings(found.settings, found.settings_table),
        "Versions": _settings(found.versions, found.versions_table),
        "How to repeat it": [frame.block("\n".join(found.repeat), "sh")] if found.repeat else [],
    }
    head = [f"# {frame.escaped(found.title)}\n"]
    if found.headline:
        head.append(f"{frame.escaped(found.headline)}\n")
    if found.unfinished:
        head.append(f"No result yet: {frame.escaped('; '.join(found.unfinished))}.\n")
    for name, texts in parts.items():
        if texts:
            head += [f"## {name}\n", *texts]
    return "\n".join(head)


def _tables(*found: Table | None) -> list[str]:
    return [f"{frame.escaped(t.name)}:\n\n{frame.markdown_table(t)}" for t in found if t]


def _settings(found: Settings, different: Table | None) -> list[str]:
    shared = [
        [frame.Cell(name, code=True), frame.Cell(value, code=True)]
        for name, value in found.shared.items()
    ]
    same = frame.table("The same in all runs", ["setting", "value"], shared) if shared else None
    return _tables(different, same)


def _answers(found: Content) -> Iterator[str]:
    if found.answers:
        yield "The first held-out problems, each with its first sample; not selected.\n"
    for problem in found.answers:
        yield f"### {frame.escaped(problem.question)} ({frame.escaped(problem.gold)})\n"
        for name, _, written in problem.written:
            yield f"{frame.code(name)}, {written.about}:\n\n{frame.block(frame.printable(written.completion, 1500))}"


def _samples(runs: tuple[Ends, ...]) -> Iterator[str]:
    if runs:
        yield "The first completions logged at the earliest and the latest step; not selected.\n"
    for run in runs:
        yield f"### {frame.escaped(run.label)}\n"
        for step, chosen in run.steps:
            for sample in chosen:
                head = (
                    f"Step {step}. {frame.escaped(sample.question)} {frame.escaped(about(sample))}"
                )
                yield f"{head}\n\n{frame.block(frame.printable(sample.completion, 1500))}"


def _more(found: Content) -> list[str]:
    return [f"{found.more_runs} more runs are left out here.\n"] if found.more_runs else []
