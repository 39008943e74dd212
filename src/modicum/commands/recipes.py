"""`modicum recipes`."""

import dataclasses

from modicum.options import Parser, show


def run(args: list[str]) -> int:
    """List the recipes, or show one as TOML with its description as comments."""
    parser = Parser("recipes")
    parser.add_argument("name", nargs="?", metavar="RECIPE", help="the recipe to show")
    found = parser.read(args)

    from modicum.config import to_toml
    from modicum.recipes import RECIPES, about, named

    configs = {name: named(name) for name in ([found.name] if found.name else RECIPES)}
    texts = {name: about(name) for name in configs}
    entries = [
        {"name": n, "about": texts[n], "config": dataclasses.asdict(c)} for n, c in configs.items()
    ]
    if found.name:
        head = "".join(f"# {line}".rstrip() + "\n" for line in texts[found.name].splitlines())
        text = f"{head}\n{to_toml(configs[found.name])}".rstrip("\n")
    else:
        text = "\n".join(f"{name:<12} {text.splitlines()[0]}" for name, text in texts.items())
    show(found.json, entries, text)
    return 0
