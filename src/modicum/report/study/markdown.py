"""The report of a study as Markdown: the page's content, with links to its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from modicum.report import frame
from modicum.report.frame import Cell, Table
from modicum.report.study.content import LETTERS_SHOWN, Content, about, marked


def render(found: Content, figures: str) -> str:
    """The whole text; `figures` is the folder of the figures, relative to it."""

    def drawn(*starts: str) -> list[str]:
        there = [f for name, f in found.figures.items() if name.startswith(starts)]
        return [frame.markdown_figure(figure, figures) for figure in there]

    parts = {
        "Result": [*drawn("differences"), *_tables(found.arms), *_said(found)],
        "Accuracy and cost": [*drawn("accuracy-"), *_tables(found.costs)],
        "By difficulty": drawn("difficulty"),
        "During training": drawn("learning-", "signals"),
        "Tuning": drawn("tuning"),
        "What changed in the weights": [*drawn("changes"), *_tables(found.changes)],
        "What the models wrote": list(_answers(found)),
        "What failed": _named("Runs that ended without a result", found.failures),
        "How the numbers are made": [
            *(f"{prose(text)}\n" for text in found.method),
            *_tables(found.tests),
            *(f"{prose(note)}\n" for note in found.notes),
            *_named("Proof of what was trained, one seed of each arm", found.proofs),
        ],
        "Settings": [
            *_tables(found.settings_table),
            *_values("The same in all arms", found.settings.shared),
            *_values("The study", found.design),
        ],
        "Versions and machine": [
            *_values("As the first run recorded them", found.versions),
            *([_environments(found)] if found.environments > 1 else []),
        ],
        "How to repeat it": [frame.block("\n".join(found.repeat), "sh")] if found.repeat else [],
    }
    head = [f"# {frame.escaped(found.title)}\n", f"**{prose(found.question)}**\n"]
    head += [f"{prose(text)}\n" for text in (found.conclusion, found.facts, found.missing) if text]
    for name, texts in parts.items():
        if texts:
            head += [f"## {name}\n", *texts]
    return "\n".join(head)


def prose(text: str) -> str:
    """A sentence as Markdown: what stands in backticks is code, all else as it is."""
    return "".join(frame.code(t) if code else _keep(t) for code, t in marked(text))


def _keep(text: str) -> str:
    """Escaped, with the spaces at its ends: pieces of a sentence are joined again."""
    start = " " if text[:1].isspace() else ""
    end = " " if text[-1:].isspace() and text.strip() else ""
    return f"{start}{frame.escaped(text)}{end}"


def _tables(*found: Table | None) -> list[str]:
    return [f"{frame.escaped(t.name)}:\n\n{frame.markdown_table(t)}" for t in found if t]


def _values(name: str, values: Mapping[str, str]) -> list[str]:
    rows = [[Cell(key, code=True), Cell(value, code=True)] for key, value in values.items()]
    return _tables(frame.table(name, ["setting", "value"], rows)) if rows else []


def _named(title: str, found: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"- {frame.code(name)}: {frame.escaped(text)}\n" for name, text in found]
    return [f"{title}:\n", "".join(lines)] if lines else []


def _environments(found: Content) -> str:
    return f"The runs recorded {found.environments} different environments.\n"


def _said(found: Content) -> Iterator[str]:
    lines = []
    for said in found.said:
        # A sentence that names its arm needs no name before it.
        name = "" if f"`{said.name}`" in said.sentence else f"{frame.code(said.name)}: "
        lines.append(f"- {name}{prose(' '.join((said.sentence, *said.more)).strip())}\n")
    yield "".join(lines)


def _answers(found: Content) -> Iterator[str]:
    if found.answers:
        yield f"{frame.escaped(found.rule)}\n"
    for problem in found.answers:
        yield f"### {frame.escaped(problem.question)} ({frame.escaped(problem.gold)})\n"
        for name, _, written in problem.written:
            text = frame.block(frame.printable(written.completion, LETTERS_SHOWN))
            yield f"{frame.code(name)}, {about(written)}:\n\n{text}"
