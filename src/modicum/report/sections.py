"""What the reports of runs and of a study are built with."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modicum.report import document as doc
from modicum.report.numbers import NONE
from modicum.report.words import printable, say
from modicum.runs import flat

Texts = dict[str, tuple[str, ...]]


class Builder:
    """Collects blocks by section, in order; a block that is None is left out."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, list[doc.Piece]]] = []

    def section(self, id: str, title: str, *blocks: doc.Piece | None) -> None:
        """A new section, where blocks go from now on."""
        self.found.append((id, title, []))
        self.add(*blocks)

    def add(self, *blocks: doc.Piece | None) -> None:
        """Further blocks of the section."""
        self.found[-1][2].extend(block for block in blocks if block is not None)

    def note(self, name: str, **values: Any) -> None:
        """A text of `words.txt`, set smaller."""
        self.add(doc.Text(say(name, **values), note=True))

    def fold(self, summary: str, block: doc.Piece | None, note: str = "") -> None:
        """A block behind a line, with a text of `words.txt`."""
        notes = (doc.Text(say(note), note=True),) if note else ()
        self.add(doc.Folded(summary, (block, *notes)) if block else None)

    def values(self, name: str, values: Mapping[str, Any]) -> None:
        """Settings under a name, tables within them flat."""
        self.add(doc.Values(name, flat) if (flat := _flatten(values)) else None)

    def proofs(self, name: str, items: Iterable[tuple[str, str | None]]) -> doc.Proofs | None:
        """What was proven of each run or arm; None where nothing was."""
        proven = tuple((run, proof) for run, proof in items if proof)
        return doc.Proofs(name, proven) if proven else None

    def repeat(self, lines: Sequence[str]) -> None:
        """The commands that make it again."""
        self.section("repeat", "How to repeat it")
        if lines:
            self.add(doc.Commands(tuple(lines)))
            self.note("same_seed")

    def sections(self) -> tuple[doc.Section, ...]:
        """Those that have blocks."""
        return tuple(doc.section(id, title, *found) for id, title, found in self.found if found)


def compare(configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], Texts]:
    """Settings that all share (name -> value) and those that differ (name -> one for each)."""
    flat = [_flatten(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config)
    values = {name: tuple(config.get(name, NONE) for config in flat) for name in names}
    different = {name: texts for name, texts in values.items() if len(set(texts)) > 1}
    return {name: values[name][0] for name in names if name not in different}, different


def _flatten(config: Mapping[str, Any]) -> dict[str, str]:
    pairs = [(n, v if isinstance(v, str) else json.dumps(v, default=str)) for n, v in flat(config)]
    return {printable(name): printable(text, doc.LETTERS_SHOWN) for name, text in pairs}
