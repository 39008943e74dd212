"""`modicum recipes`."""

from __future__ import annotations

import dataclasses
import inspect
import json

from modicum.options import Parser
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
    parser.add_argument("--json", action="store_true", help="print as JSON")
    found = parser.read(args)

    from modicum.config import to_toml
    from modicum.recipes import RECIPES
    from modicum.spec import nearest

    if found.name is not None and found.name not in RECIPES:
        raise UserError(f"there is no recipe {found.name!r}; {nearest(found.name, RECIPES)}")
    texts = {name: inspect.getdoc(make) or "" for name, make in RECIPES.items()}
    if found.json:
        names = [found.name] if found.name else list(RECIPES)
        entries = [
            {"name": n, "about": texts[n], "config": dataclasses.asdict(RECIPES[n]())}
            for n in names
        ]
        print(json.dumps(entries))
    elif found.name:
        print("".join(f"# {line}".rstrip() + "\n" for line in texts[found.name].splitlines()))
        print(to_toml(RECIPES[found.name]()), end="")
    else:
        for name, text in texts.items():
            print(f"{name:<12} {text.splitlines()[0]}")
    return 0
