"""`modicum demo`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modicum.config import TrainConfig
from modicum.options import Parser, show
from modicum.types import UserError

SCORES = ("accuracy", "low", "high", "greedy")
COSTS = ("trainable_parameters", "total_parameters", "seconds", "peak_memory_bytes")


@dataclass(frozen=True)
class Options:
    """What to compare."""

    updates: str = "full; last(1); lora(rank=8)"
    """Update expressions, separated by semicolons."""
    seed: int = 0
    """Of problems, noise and initialisation; the same for every update."""
    steps: int = TrainConfig.steps
    """Steps of each run."""
    out: str = "runs/demo"
    """The folder of the runs, the summary and the report; replaced if it holds a demo."""


def run(args: list[str]) -> int:
    """Train the tiny base with several updates on the same problems and compare them."""
    parser = Parser("demo")
    found, options = parser.options(args, Options, "demo")
    wanted = [text.strip() for text in options.updates.split(";") if text.strip()]
    if not wanted:
        raise UserError("demo needs at least one update, such as --updates 'full; last(1)'")

    from modicum import disk, recipes, updates
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
    folders: list[Path] = []
    summary: list[dict[str, Any]] = []
    with disk.held(out):
        for text in wanted:
            config = replace(recipes.demo(text, options.seed), steps=options.steps)
            config = replace(config, out=str(out / f"{slug(text)}-seed{options.seed}"))
            with Display() as display:
                result = train(config, display, overwrite=True, base=base)
            base = base or Evaluation.from_json(result["base"])
            folders.append(Path(config.out))
            summary.append(row(result))
            Run(out).write_text("summary.json", json.dumps(summary, indent=2) + "\n")
    report = page.write(folders, out / "report.html", "modicum demo")
    if not found.json:
        tables.show(tables.results([read.load(folder) for folder in folders]))
    text = f"summary: {out / 'summary.json'}\nreport:  {report}"
    show(found.json, {"summary": summary, "report": str(report)}, text)
    return 0


def row(result: dict[str, Any]) -> dict[str, Any]:
    """One run's line of `summary.json`."""
    base, trained = result["base"], result["trained"]
    return {
        **{name: result[name] for name in ("update", "seed")},
        **{f"base_{name}": base[name] for name in SCORES},
        **{name: trained[name] for name in (*SCORES, "num_problems")},
        **{name: result[name] for name in COSTS},
    }
