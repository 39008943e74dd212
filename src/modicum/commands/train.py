"""`modicum train`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.options import Parser, add_options, given, merge, show
from modicum.types import UserError

NOTHING_TRAINED = 3


def run(args: list[str]) -> int:
    """Train as the TOML file and the options say; `NOTHING_TRAINED` if that trained nothing."""
    parser = Parser("train")
    add_sources(parser)
    parser.add_argument("--dry-run", action="store_true", help="modicum doctor instead of a run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add_options(parser, TrainConfig)
    found = parser.read(args)
    modes = [
        f"--{name}"
        for name in ("dry-run", "resume", "overwrite")
        if vars(found)[name.replace("-", "_")]
    ]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} exclude each other")
    config = settings(found, {})
    if found.dry_run:
        from modicum.commands.doctor import tell

        return tell(config, found.json)

    from modicum.display import Display
    from modicum.naming import run_folder
    from modicum.training.loop import train

    folder = run_folder(config)
    if found.resume and (folder / "config.toml").is_file():
        config = settings(found, {**read_toml(folder / "config.toml"), "out": str(folder)})

    with Display(folder if config.records.watch else None) as display:
        result = train(config, display, found.overwrite, found.resume)
    if not found.json:
        from modicum.report import read, tables

        display.console.print(f"change proof: {result['change_proof']}")
        display.console.print(f"agreement proof: {result['agreement_proof']}")
        tables.show(tables.results([read.load(folder)]))
    show(found.json, result, f"run folder: {folder}")
    if result["nothing_trained"]:
        display.console.print(f"NOTHING WAS TRAINED: {result['nothing_trained']}", style="bold red")
        display.console.print(f"modicum doctor --config {folder}/config.toml shows more")
        return NOTHING_TRAINED
    return 0


def add_sources(parser: Parser) -> None:
    """The options that `settings` starts from."""
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file with settings; options override"
    )
    parser.add_argument(
        "--recipe", metavar="NAME", help="settings of a recipe (modicum recipes); options override"
    )


def settings(found: argparse.Namespace, below: dict[str, Any]) -> TrainConfig:
    """The settings of --config or --recipe, under the options and over `below`."""
    if found.recipe and found.config:
        raise UserError("--recipe and --config exclude each other")
    tables = read_toml(Path(found.config)) if found.config else {}
    if found.recipe:
        from modicum import recipes

        tables = dataclasses.asdict(recipes.named(found.recipe))
    tables = merge(below, tables)
    from_mapping(TrainConfig, tables, found.config or "options")  # errors in a file name it
    return from_mapping(TrainConfig, merge(tables, given(TrainConfig, found)), "options")
