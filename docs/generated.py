"""Pages of the site that are made from the code when it is built, so that they cannot go stale.

`write` makes them in docs/reference, which git ignores. Nothing here needs Sphinx."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import os
import re
import typing
from pathlib import Path
from typing import Any

from modicum import cli, curricula, objectives, options, rewards, settings, tasks, updates
from modicum.config import TrainConfig
from modicum.study import launchers

WIDTH = "92"  # columns of --help
KINDS = {
    "tasks": (tasks.TASKS, "Problems and their grading ([tasks](../tasks.md))."),
    "rewards": (rewards.REWARDS, "Terms that score a completion ([rewards](../rewards.md))."),
    "updates": (updates.UPDATES, "What trains ([updates](../updates.md))."),
    "objectives": (
        objectives.OBJECTIVES,
        "Advantages and loss of a step ([objectives](../objectives.md)).",
    ),
    "curricula": (
        curricula.CURRICULA,
        "Which problems come next ([curricula](../curricula.md)).",
    ),
    "launchers": (
        launchers.LAUNCHERS,
        "What runs the cells of a study ([launchers](../launchers.md)).",
    ),
}
PYTHON = (
    "What `import modicum` offers, from the docstrings; [from Python](../python.md) explains it."
)
MODULES = {
    "Calls": ("modicum.face", ["train", "load", "evaluate", "compare", "study", "report"]),
    "What they return": ("modicum.face.training", ["TrainResult"]),
    "What goes in and out": (
        "modicum.types",
        ["Problem", "Grade", "Completion", "Group", "UserError"],
    ),
    "Intervals and tests": (
        "modicum.stats",
        ["pass_at_k", "interval", "mean_interval", "paired_interval", "share_interval", "holm"],
    ),
}


def pages() -> dict[str, str]:
    """Name and text of every page."""
    made = {"commands.md": commands(), "settings.md": config(), "names.md": names()}
    made["python.md"] = python()
    return made | {f"{kind}.md": members(kind) for kind in KINDS}


def write(folder: Path) -> list[str]:
    """Write them where they have changed, remove others; returns their names."""
    folder.mkdir(exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return list(made)


def help_of(name: str) -> str:
    """What `modicum NAME --help` prints."""
    before, said = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            cli.run([name, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return said.getvalue().rstrip()


def commands() -> str:
    """Every command with its help."""
    parts = [
        "# The command line",
        "What `--help` of each command says, in the words of this version.",
    ]
    for name in cli.COMMANDS:
        parts += [f"## modicum {name}", f"```text\n{help_of(name)}\n```"]
    return "\n\n".join(parts) + "\n"


def config() -> str:
    """Every setting of a run, by section."""
    head = "Of `modicum train` and `modicum.train`: an option is `--` and the name with `-` for `_`, in TOML"
    parts = ["# Settings of a run", f"{head} a key of its section, in Python an argument."]
    tables: list[tuple[str, type]] = [("run", TrainConfig)]
    while tables:
        section, cls = tables.pop(0)
        hints, docs = typing.get_type_hints(cls), options.field_docs(cls)
        rows = []
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            if dataclasses.is_dataclass(hint):
                tables.append((field.name, typing.cast(type, hint)))
                continue
            default = "auto" if settings.AUTO in field.metadata else field.default
            rows.append(f"| `{field.name}` | {cell(default)} | {docs[field.name]} |")
        title = "## Of the run itself" if section == "run" else f"## `[{section}]`"
        parts.append(title)
        parts.append("\n".join(["| setting | default | |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def cell(value: Any) -> str:
    """A default in a table."""
    return "" if value in (None, "", ()) else f"`{value}`"


def names() -> str:
    """src/modicum/elsewhere.txt as a table."""
    lines = Path(options.__file__).with_name("elsewhere.txt").read_text("utf-8").splitlines()[1:]
    rows = []
    for line in lines:
        here, theirs, note = (part.strip() for part in line.split("|"))
        listed = " ".join(f"`{name}`" for name in theirs.split())
        said = re.sub(r"docs/(\w+)\.md", r"[\1](../\1.md)", note)
        rows.append(f"| {listed} | {f'`{here}`' if here else ''} | {said} |")
    head = "What TRL, verl, transformers and PEFT call a setting, and what it is here. The command line and\n"
    head += "`modicum.train` know these names: whoever types one is told the one to use."
    table = "\n".join(["| there | here | what differs |", "| --- | --- | --- |", *rows])
    return f"# Names of other trainers\n\n{head}\n\n{table}\n"


def block(lines: list[str]) -> str:
    """reStructuredText for autodoc, in a page of Markdown."""
    return "\n".join(["```{eval-rst}", *lines, "```"])


def python() -> str:
    """The calls of `import modicum` and what they return."""
    parts = ["# Python: calls and classes", PYTHON]
    for title, (module, listed) in MODULES.items():
        parts.append(f"## {title}")
        for name in listed:
            item = getattr(importlib.import_module(module), name)
            kind = "autoclass" if isinstance(item, type) else "autofunction"
            more = ["   :members:"] if kind == "autoclass" else []
            if module == "modicum.face":
                parts.append(f"### modicum.{name}")
            parts.append(block([f".. {kind}:: {item.__module__}.{item.__name__}", *more]))
    return "\n\n".join(parts) + "\n"


def members(kind: str) -> str:
    """The members of a kind by the names that expressions have."""
    table, line = KINDS[kind]
    parts = [f"# Members: {kind}", line]
    for name, item in table.items():
        where = f"{item.__module__}.{item.__qualname__}"
        directive = "autoclass" if isinstance(item, type) else "autofunction"
        parts += [f"## `{name}`", block([f".. {directive}:: {where}"])]
    return "\n\n".join(parts) + "\n"
