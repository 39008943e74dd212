"""Sections that a report of runs and that of a study have in common."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modicum.report import document as doc
from modicum.report.numbers import NONE
from modicum.report.words import printable

Texts = dict[str, tuple[str, ...]]


def compare(configs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], Texts]:
    """Settings that all share (name -> value) and those that differ (name -> one for each)."""
    flat = [_flatten(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config)
    values = {name: tuple(config.get(name, NONE) for config in flat) for name in names}
    different = {name: texts for name, texts in values.items() if len(set(texts)) > 1}
    return {name: values[name][0] for name in names if name not in different}, different


def shared(name: str, values: Mapping[str, Any]) -> doc.Values | None:
    """Settings under a name, tables within them flat; None where there are none."""
    return doc.Values(name, flat) if (flat := _flatten(values)) else None


def proofs(name: str, items: Iterable[tuple[str, str | None]]) -> doc.Proofs | None:
    """What was proven of each run or arm; None where nothing was."""
    proven = tuple((run, proof) for run, proof in items if proof)
    return doc.Proofs(name, proven) if proven else None


def repeat(lines: Sequence[str]) -> doc.Section:
    """The commands that make it again."""
    blocks = (doc.Commands(tuple(lines)), doc.note("same_seed")) if lines else ()
    return doc.section("repeat", "How to repeat it", *blocks)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[printable(f"{prefix}{name}")] = printable(text, doc.LETTERS_SHOWN)
    return flat
