"""`modicum train`, `doctor` (`train --dry-run`), `probe`, `recipes` and `demo`: runs and before them."""

import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from modicum.commands import printed
from modicum.config import TrainConfig, from_mapping, read_toml, to_toml
from modicum.options import given, merge, several
from modicum.types import UserError

NOTHING_TRAINED = 3
SCORES = ("accuracy", "low", "high", "greedy")
COSTS = ("trainable_parameters", "total_parameters", "seconds", "peak_memory_bytes")


def run(found: Namespace) -> int:
    """Train as the TOML file and the options say; `NOTHING_TRAINED` if that trained nothing."""
    config = settings(found)
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
        from modicum.report import tables
        from modicum.report.read import load

        display.console.print(f"change proof: {result['change_proof']}")
        display.console.print(f"agreement proof: {result['agreement_proof']}")
        tables.show(tables.results([load(folder)]))
    printed(found.json, result, f"run folder: {folder}")
    if result["nothing_trained"]:
        display.console.print(f"NOTHING WAS TRAINED: {result['nothing_trained']}", style="bold red")
        display.console.print(f"modicum doctor --config {folder}/config.toml shows more")
    return code


def settings(found: Namespace, below: dict[str, Any] | None = None) -> TrainConfig:
    """The settings of --config or --recipe, under the options and over `below`."""
    tables = read_toml(Path(found.config)) if found.config else {}
    if found.recipe:
        from modicum import recipes

        tables = dataclasses.asdict(recipes.named(found.recipe))
    tables = merge(below or {}, tables)
    from_mapping(TrainConfig, tables, found.config or "options")  # errors in a file name it
    return from_mapping(TrainConfig, merge(tables, given(TrainConfig, found)), "options")


def run_doctor(found: Namespace) -> int:
    """Look at the run that the options describe; 1 if it would learn nothing."""
    return tell(settings(found), found.json, found.problems, found.show)


def tell(config: TrainConfig, as_json: bool, problems: int = 0, shown: int = 2) -> int:
    """Print what the doctor finds."""
    from modicum.doctor import examine
    from modicum.report.words import filled

    seen = examine(config, problems)
    text = filled("doctor.txt", shown=shown, **seen)
    return printed(as_json, seen, text, int(not seen["learns"]))


def run_probe(found: Namespace) -> int:
    """Print rates, gains and costs of some updates."""
    config = settings(found)

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


def run_recipes(found: Namespace) -> int:
    """List the recipes, or show one as TOML with its description as comments."""
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


def run_demo(found: Namespace) -> int:
    """Train the tiny base with several updates on the same problems and compare them."""
    if not (wanted := several(found.updates)):
        raise UserError("demo needs at least one update, such as --updates 'full; last(1)'")

    from modicum import disk, updates
    from modicum.display import Display
    from modicum.evaluate import Evaluation
    from modicum.naming import slug
    from modicum.report import page, tables
    from modicum.report.read import load
    from modicum.runs import Run, make_folder
    from modicum.training.loop import train

    for text in wanted:
        updates.parse(text)  # a wrong name fails before anything is trained
    out = Path(found.out)
    make_folder(out)
    base: Evaluation | None = None
    summary: list[dict[str, Any]] = []
    folders = [out / f"{slug(text)}-seed{found.seed}" for text in wanted]
    with disk.held(out):
        for text, folder in zip(wanted, folders, strict=True):
            how = {"seed": found.seed, "steps": found.steps}
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
        tables.show(tables.results([load(folder) for folder in folders]))
    text = f"summary: {out / 'summary.json'}\nreport:  {report}"
    return printed(found.json, {"summary": summary, "report": str(report)}, text)
