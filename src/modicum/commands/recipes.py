"""`modicum recipes`."""

from __future__ import annotations

import dataclasses
import inspect

from modicum.options import Parser, show
from modicum.types import UserError

EXAMPLES = """
modicum recipes
modicum recipes tinyzero                    # what it repeats, what it needs, its settings
modicum recipes tinyzero > tinyzero.toml    # a file for `modicum train --config`
modicum train --recipe tinyzero --update 'lora(rank=32)' --seed 1
"""


def run(args: list[str]) -> int:
    """List the recipes, or show one as TOML with its description as comments."""
    parser = Parser("recipes", "Whole configs for set-ups that people know.", EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="RECIPE", help="the recipe to show")
    found = parser.read(args)

    from modicum.config import to_toml
    from modicum.recipes import RECIPES
    from modicum.spec import nearest

    if found.name is not None and found.name not in RECIPES:
        raise UserError(f"there is no recipe {found.name!r}; {nearest(found.name, RECIPES)}")
    texts = {name: inspect.getdoc(make) or "" for name, make in RECIPES.items()}
    names = [found.name] if found.name else list(RECIPES)
    entries = [
        {"name": n, "about": texts[n], "config": dataclasses.asdict(RECIPES[n]())} for n in names
    ]
    if found.name:
        about = "".join(f"# {line}".rstrip() + "\n" for line in texts[found.name].splitlines())
        text = f"{about}\n{to_toml(RECIPES[found.name]())}".rstrip("\n")
    else:
        text = "\n".join(f"{name:<12} {text.splitlines()[0]}" for name, text in texts.items())
    show(found.json, entries, text)
    return 0
