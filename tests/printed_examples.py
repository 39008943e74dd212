"""What help and docs print for readers to type: found, read as a shell reads it, and checked."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modicum import recipes
from modicum.config import TrainConfig, from_mapping
from modicum.options import given
from modicum.parts import parsers

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("studies/*/README.md")),
]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.M | re.S)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.M)
OWN = re.compile(r"\.py:|\bmy_|my_module")
"""In a reward: a file of the reader's, which no checkout has."""
INLINE = re.compile(r"(?<!`)`((?:modicum|torchrun)[^`\n]+)`")


def words(line: str) -> list[str]:
    """What stands after `modicum`, without comments and redirections."""
    found = shlex.split(line, comments=True)
    found = found[found.index("modicum") + 1 :]
    return list(itertools.takewhile(lambda word: word not in ("<", ">", "|"), found))


def commands_of(page: Path) -> Iterator[str]:
    """Every command line of a page that calls modicum, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = [found[3] for found in FENCE.finditer(text) if found[2] != "python"]
    blocks += INDENTED.findall(FENCE.sub("", text))
    for block in blocks:
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if re.match(r"modicum (?!COMMAND)|torchrun .*-m modicum ", line):
                yield line


def inline_of(page: Path) -> Iterator[str]:
    """Every command in the text of a page that has options and is not only the start of one."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for line in INLINE.findall(text.replace("\n", " ")):
        if " --" in line and "modicum " in line and "..." not in line:
            yield line


def python_of(page: Path) -> list[str]:
    """The blocks of Python of a page."""
    text = page.read_text(encoding="utf-8")
    return [found[3] for found in FENCE.finditer(text) if found[2] == "python"]


def check_values(name: str, found: argparse.Namespace, skip_reward: bool) -> None:
    """UserError where an expression or a setting of a parsed line is wrong."""
    kinds = {**parsers(), "update": lambda text: [parsers()["update"](t) for t in text.split(";")]}
    kinds["updates"] = kinds["update"]
    kinds["expression"] = parsers()["update" if name == "updates" else "task"]
    for kind, parse in kinds.items():
        value: Any = getattr(found, kind, None)
        if value and not (skip_reward and kind == "reward"):
            parse(value)
    if getattr(found, "recipe", None):
        recipes.named(found.recipe)
    if hasattr(found, "config"):
        from_mapping(TrainConfig, given(TrainConfig, found), "options")


def plan_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner, which takes seconds, says nothing."""
    from types import SimpleNamespace

    from modicum import doctor

    nothing = {
        "memory": {"peak_bytes": 1},
        "machine": {"memory": None},
        "times": None,
        "advice": "",
    }
    monkeypatch.setattr(doctor.hardware, "parse", lambda *_: None)
    monkeypatch.setattr(doctor.plan, "make", lambda *_: SimpleNamespace(to_json=lambda: nothing))
