"""The rate that a run finds against a grid around it: does another one learn more?

    python scripts/check_rates.py --out benchmarks/rates.jsonl --tasks 'arithmetic(terms=6)'
    python scripts/check_rates.py --out benchmarks/rates.jsonl --table

Every update is trained once with `--learning-rate auto`, and once with the rate that it found times
each factor, with the same seed and problems. A cell is a line of the file; those that are there are
not run again. Other settings come from --config. The table has, for each update and seed, the
accuracy at every factor: on problems of the tune split, or, without evaluation, the mean over the
second half of training; and how far each factor lies behind the best, where all were run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from modicum import runs
from modicum.config import Held, Records, Steps, TrainConfig, from_mapping, read_toml
from modicum.training.loop import train
from modicum.types import RunInterrupted, UserError

UPDATES = "full; last(1); last(2); first(1); lora(rank=8); lora(rank=1); parts(norm)"
TOY = TrainConfig(
    steps=48,
    batch=Steps(prompts_per_step=8, group_size=8),
    evaluation=Held(eval_problems=96, eval_samples=4, eval_split="tune"),
    records=Records(anatomy=False, checkpoint_every=0),
)


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="settings of the runs (default: a small toy)")
    parser.add_argument("--tasks", nargs="+", default=["arithmetic(terms=6)"])
    parser.add_argument("--updates", default=UPDATES)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.316, 3.16, 0.57, 1.75])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(options.out, options.tasks))
        return
    tables = read_toml(options.config) if options.config else {}
    config = from_mapping(TrainConfig, tables, str(options.config)) if tables else TOY
    for task in options.tasks:
        for seed in options.seeds:
            for update in (text.strip() for text in options.updates.split(";")):
                settings = replace(config, task=task, update=update, seed=seed)
                found = cell(options.out, settings, 1.0, None)
                for factor in options.factors if found.get("rate") else ():
                    cell(options.out, settings, factor, found["rate"] * factor)


def cell(out: Path, config: TrainConfig, factor: float, rate: float | None) -> dict[str, Any]:
    """The outcome of one run, from the file if it is there."""
    key = {"task": config.task, "update": config.update, "seed": config.seed, "factor": factor}
    for row in runs.read_lines(out) if out.exists() else ():
        if key.items() <= row.items():
            return row
    folder = out.with_suffix(".run")
    optimizer = replace(config.optimizer, learning_rate=rate)
    found: dict[str, Any] = {**key, "rate": rate}
    try:
        result = train(replace(config, out=str(folder), optimizer=optimizer), overwrite=True)
        used = read_toml(folder / "config.toml")["optimizer"].get("learning_rate")
        steps = [row["reward/accuracy"] for row in runs.read_lines(folder / "metrics.jsonl")]
        found |= {"rate": used, "training": [round(x, 4) for x in steps]}
        found["accuracy"] = result["trained"] and result["trained"]["accuracy"]
    except RunInterrupted:
        raise
    except UserError as error:
        found["error"] = str(error)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    print({**found, "training": len(found.get("training", []))}, flush=True)
    return found


def accuracy(row: dict[str, Any]) -> float | None:
    """What a run came to: held out, or late in training; None where it was stopped."""
    late = row.get("training", [])[len(row.get("training", [])) // 2 :]
    held = row.get("accuracy")
    return held if held is not None else sum(late) / len(late) if late else None


def table(out: Path, tasks: list[str]) -> str:
    """A Markdown table of the outcomes, and what each factor loses against the best."""
    rows: dict[tuple[str, str, int], dict[float, dict[str, Any]]] = defaultdict(dict)
    for row in runs.read_lines(out):
        if row["task"] in tasks:
            rows[row["task"], row["update"], row["seed"]][row["factor"]] = row
    factors = sorted({factor for found in rows.values() for factor in found})
    lines = ["| task | update | seed | rate found |" + "".join(f" x {f:g} |" for f in factors)]
    lines += ["| --- | --- | --- | --- |" + " --- |" * len(factors)]
    behind: dict[float, list[float]] = defaultdict(list)
    for (task, update, seed), found in rows.items():
        scores = {f: accuracy(row) for f, row in found.items()}
        known = {f: score for f, score in scores.items() if score is not None}
        shown = [f" {100 * known[f]:.1f} |" if f in known else " |" for f in factors]
        rate = found[1.0]["rate"] if 1.0 in found and found[1.0]["rate"] else float("nan")
        lines.append(f"| {task} | `{update}` | {seed} | {rate:.2g} |" + "".join(shown))
        if known.keys() == set(factors):
            for factor in factors:
                behind[factor].append(100 * (max(known.values()) - known[factor]))
    lines += ["", "| behind the best of its grid | mean | at most | updates and seeds |"]
    lines += ["| --- | --- | --- | --- |"]
    for factor, losses in behind.items():
        mean = sum(losses) / len(losses)
        lines.append(f"| x {factor:g} | {mean:.1f} | {max(losses):.1f} | {len(losses)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
