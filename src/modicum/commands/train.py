"""`modicum train`, `doctor` (`train --dry-run`), `probe`, `recipes` and `demo`: runs and before them."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from modicum.commands import parser, printed
from modicum.config import TrainConfig, from_mapping, read_toml
from modicum.limits import Natural
from modicum.options import add_options, given, merge, several, show
from modicum.settings import Settings
from modicum.types import Frozen, UserError

NOTHING_TRAINED = 3
SCORES = ("accuracy", "low", "high", "greedy")
COSTS = ("trainable_parameters", "total_parameters", "seconds", "peak_memory_bytes")
S = TypeVar("S", bound=Settings)


def run(args: list[str]) -> int:
    """Train as the TOML file and the options say; `NOTHING_TRAINED` if that trained nothing."""
    made = parser("train")
    add_options(made, TrainConfig)
    found = made.read(args)
    config = settings(found, {})
    if found.dry_run:
        return tell(config, found.json)

    from modicum.display import Display
    from modicum.naming import run_folder
    from modicum.parallel import is_first
    from modicum.training.loop import train

    folder = run_folder(config)
    if found.resume and (folder / "config.toml").is_file():
        config = settings(found, {**read_toml(folder / "config.toml"), "out": str(folder)})

    with Display(folder if config.records.watch else None) as display:
        result = train(config, display, found.overwrite, found.resume)
    code = NOTHING_TRAINED if result["nothing_trained"] else 0
    if not is_first():
        return code
    if not found.json:
        from modicum.report import read, tables

        display.console.print(f"change proof: {result['change_proof']}")
        display.console.print(f"agreement proof: {result['agreement_proof']}")
        tables.show(tables.results([read.load(folder)]))
    show(found.json, result, f"run folder: {folder}")
    if result["nothing_trained"]:
        display.console.print(f"NOTHING WAS TRAINED: {result['nothing_trained']}", style="bold red")
        display.console.print(f"modicum doctor --config {folder}/config.toml shows more")
    return code


def settings(found: argparse.Namespace, below: dict[str, Any]) -> TrainConfig:
    """The settings of --config or --recipe, under the options and over `below`."""
    tables = read_toml(Path(found.config)) if found.config else {}
    if found.recipe:
        from modicum import recipes

        tables = dataclasses.asdict(recipes.named(found.recipe))
    tables = merge(below, tables)
    from_mapping(TrainConfig, tables, found.config or "options")  # errors in a file name it
    return from_mapping(TrainConfig, merge(tables, given(TrainConfig, found)), "options")


def read(name: str, args: list[str], cls: type[S]) -> tuple[Any, S, TrainConfig]:
    """The arguments of a command that takes a `cls` and the options of `modicum train`."""
    found, options = parser(name).options(args, cls, name, TrainConfig)
    return found, options, settings(found, {})


class DoctorOptions(Settings):
    """How much to look at."""

    problems: Natural = 0
    """Look at so many problems of the first step; 0: at all of them, prompts_per_step."""
    show: Natural = 2
    """Problems whose completions are printed, four of each; --json has all."""


def run_doctor(args: list[str]) -> int:
    """Look at the run that the options describe; 1 if it would learn nothing."""
    found, options, config = read("doctor", args, DoctorOptions)
    return tell(config, found.json, options)


def tell(config: TrainConfig, as_json: bool, options: DoctorOptions | None = None) -> int:
    """Print what the doctor finds."""
    from modicum import doctor

    options = options or DoctorOptions()
    seen = doctor.examine(config, options.problems)
    return printed(as_json, seen, doctor.text(seen, options.show), int(not seen["learns"]))


def run_probe(args: list[str]) -> int:
    """Print rates, gains and costs of some updates."""
    made = parser("probe")
    add_options(made, TrainConfig)
    found = made.read(args)
    config = settings(found, {})

    from modicum import updates as known
    from modicum.display import console
    from modicum.training import probe

    one = [config.update] if hasattr(found, "update") else []
    said = list(dict.fromkeys(one or several(found.updates)))
    if found.updates is not None and one:
        raise UserError("--update and --updates exclude each other")
    if found.updates is not None and not said:
        raise UserError(f"--updates {found.updates!r} names no update")
    for update in said:
        known.parse(update)
    probed = probe.probe(config, said or probe.usual(config), console().print)
    return printed(found.json, dataclasses.asdict(probed), probed.text())


def run_recipes(args: list[str]) -> int:
    """List the recipes, or show one as TOML with its description as comments."""
    found = parser("recipes").read(args)

    from modicum.config import to_toml
    from modicum.recipes import RECIPES, about, named

    configs = {name: named(name) for name in ([found.name] if found.name else RECIPES)}
    texts = {name: about(name) for name in configs}
    tables = {name: dataclasses.asdict(config) for name, config in configs.items()}
    entries = [{"name": n, "about": texts[n], "config": of} for n, of in tables.items()]
    if found.name:
        head = "".join(f"# {line}".rstrip() + "\n" for line in texts[found.name].splitlines())
        text = f"{head}\n{to_toml(configs[found.name])}".rstrip("\n")
    else:
        text = "\n".join(f"{name:<12} {text.splitlines()[0]}" for name, text in texts.items())
    return printed(found.json, entries, text)


class DemoOptions(Frozen):
    """What to compare."""

    updates: str = "full; last(1); lora(rank=8)"
    """Update expressions, separated by semicolons."""
    seed: int = 0
    """Of problems, noise and initialisation; the same for every update."""
    steps: int = TrainConfig.steps
    """Steps of each run."""
    out: str = "runs/demo"
    """The folder of the runs, the summary and the report; replaced if it holds a demo."""


def run_demo(args: list[str]) -> int:
    """Train the tiny base with several updates on the same problems and compare them."""
    found, options = parser("demo").options(args, DemoOptions, "demo")
    if not (wanted := several(options.updates)):
        raise UserError("demo needs at least one update, such as --updates 'full; last(1)'")

    from modicum import disk, updates
    from modicum.display import Display
    from modicum.evaluate import Evaluation
    from modicum.naming import slug
    from modicum.report import page, read, tables
    from modicum.runs import Run, make_folder
    from modicum.training.loop import train

    for text in wanted:
        updates.parse(text)  # a wrong name fails before anything is trained
    out = Path(options.out)
    make_folder(out)
    base: Evaluation | None = None
    summary: list[dict[str, Any]] = []
    folders = [out / f"{slug(text)}-seed{options.seed}" for text in wanted]
    with disk.held(out):
        for text, folder in zip(wanted, folders, strict=True):
            how = {"seed": options.seed, "steps": options.steps}
            config = TrainConfig(update=text, out=str(folder), **how)
            with Display() as display:
                result = train(config, display, overwrite=True, base=base)
            base = base or Evaluation.from_json(result["base"])
            row = {name: result[name] for name in ("update", "seed")}
            row |= {f"base_{name}": result["base"][name] for name in SCORES}
            row |= {name: result["trained"][name] for name in (*SCORES, "num_problems")}
            summary.append(row | {name: result[name] for name in COSTS})
            Run(out).write_text("summary.json", json.dumps(summary, indent=2) + "\n")
    report = page.write(folders, out / "report.html", "modicum demo")
    if not found.json:
        tables.show(tables.results([read.load(folder) for folder in folders]))
    text = f"summary: {out / 'summary.json'}\nreport:  {report}"
    return printed(found.json, {"summary": summary, "report": str(report)}, text)
