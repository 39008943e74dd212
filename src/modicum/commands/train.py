"""`modicum train`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.options import Parser, add_options, given, merge, show
from modicum.types import UserError

EXAMPLES = """
modicum train
modicum train --update 'last(1)' --steps 40 --out runs/last1
modicum train --model Qwen/Qwen2.5-0.5B --task gsm8k --update 'lora(rank=8)' --dtype bf16
modicum train --config runs/last1/config.toml --seed 1 --out runs/last1-seed1
modicum train --recipe tinyzero --update 'lora(rank=32)' --out runs/tinyzero
modicum train --out runs/last1 --resume --steps 60        # a finished run, for longer
modicum train --watch --eval-every 10 --stop-when 'accuracy >= 0.9'
"""


def run(args: list[str]) -> int:
    """Train as the TOML file and the options say."""
    parser = Parser("train", "Train a model with GRPO, updating the part that you name.", EXAMPLES)
    add_sources(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add_options(parser, TrainConfig)
    found = parser.read(args)
    if found.resume and found.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    config = settings(found, {})

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
