"""All updates on the demo task: held-out accuracy over seeds, cost, at a rate tuned for each.

    python benchmarks/updates.py [--jobs 2] [--steps 60] [--only 'full; lora(rank=8)']
    python benchmarks/updates.py --time       seconds a step and peak memory, one at a time
    python benchmarks/updates.py --write      only the table, from the cells that are there

The settings are the demo's with half of its batch (8 problems x 8). Every update gets the same five tries: a rate of the table
(recipes.start_rate) times 1/9, 1 and 9, and then the best of these times 1/3 and
3, for `--tune-steps` steps with a seed of its own, judged on the tune split. The best rate
then trains with seeds 0, 1 and 2 and is judged on the test split. Each cell is a run folder
in a process of its own; cells that are there are not run again. The mask of a finished run
(`sparse(by='run')`) takes the run of `full` at its best rate with the tuning seed. Writes
benchmarks/updates.json and the table between the marks in docs/updates.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "updates.md"
MARKS = ("<!-- table: begin -->", "<!-- table: end -->")
SEEDS = (0, 1, 2)
SAMPLES = {"tune": 2, "test": 4}
TUNE_SEED = 100
COARSE, FINE = (1 / 9, 1.0, 9.0), (1 / 3, 3.0)
ORACLE = "sparse(keep=0.05, by='run', run={run!r})"
UPDATES = [
    *("full", "first(1)", "last(1)", "middle(1)", "every(2)", "surgical(1, of=3)"),
    *("layers(0, -1)", "last(1) + parts(norm)", "last(1, norm=True, head=True)"),
    *("parts(attention)", "parts(mlp)", "parts(norm)", "bitfit"),
    *("rgn(every=10)", "snr(every=10)", "autofreeze(intervals=8)", "slimfit(rate=0.9)"),
    *("lisa(layers=1, every=5)", "lisa(layers=1, every=5, ends=False)"),
    *("badam(every=5)", "badam_ratio(every=5)"),
    *("lora(rank=1)", "lora", "lora @ last(1)", "rslora", "loraplus", "lorafa", "dora"),
    *("pissa", "olora", "adalora", "loraxs", "vera", "miss", "ia3", "lntuning", "oft"),
    *("shira", "tinylora"),
    *("sparse(by='random')", "sparse(by='smallest')", "sparse(by='largest')"),
    *("sparse(by='fisher')", "sparse(by='taylor')"),
    *("galore", "apollo", "apollo_mini", "sgd", "sgd @ lora", "galore @ last(1)"),
]


@dataclass(frozen=True)
class Cell:
    """One run: an update at a rate with a seed, judged on a split."""

    update: str
    rate: float
    seed: int
    split: str
    steps: int
    folder: str


def slug(update: str) -> str:
    """A folder's name for an update."""
    return re.sub(r"[^a-z0-9.]+", "-", update.lower()).strip("-")


def config_of(cell: Cell) -> Any:
    """The demo's settings with half of its batch, at the cell's rate."""
    from modicum.config import Held, TrainConfig

    config = TrainConfig(update=cell.update, seed=cell.seed)
    return replace(
        config,
        steps=cell.steps,
        out=cell.folder,
        batch=replace(config.batch, prompts_per_step=8),
        optimizer=replace(config.optimizer, learning_rate=cell.rate),
        evaluation=Held(eval_problems=0),
        records=replace(config.records, checkpoint_every=0),
    )


def run(cell: Cell) -> tuple[Cell, dict[str, Any]]:
    """Train and evaluate a cell; what went wrong is kept as `error`."""
    from modicum import tasks
    from modicum.evaluate import evaluate
    from modicum.training.checkpoint import reload
    from modicum.training.loop import train
    from modicum.types import RunStopped, UserError

    path = Path(cell.folder) / "cell.json"
    if path.exists():
        return cell, json.loads(path.read_text())
    config = config_of(cell)
    try:
        result = train(config, overwrite=True)
        made = reload(Path(cell.folder))
        found = evaluate(
            made.policy,
            tasks.parse(config.task),
            config.sampling,
            split=cell.split,
            samples=SAMPLES[cell.split],
        )
        kept = ("active_parameters_mean", "total_parameters", "optimizer_bytes", "seconds")
        row = {key: result[key] for key in kept}
        row |= {"accuracy": found.accuracy, "greedy": found.greedy, "length": found.length}
    except (RunStopped, UserError) as error:
        row = {"error": str(error)}
        Path(cell.folder).mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    return cell, row


def measure(update: str) -> tuple[str, dict[str, Any]]:
    """Seconds a step (median) and the process's peak memory of a short run."""
    from modicum import runs
    from modicum.training.loop import train
    from modicum.types import UserError

    folder = f"runs/updates/time/{slug(update)}"
    cell = Cell(update, 1e-5, 0, "test", 10, folder)
    try:
        result = train(config_of(cell), overwrite=True)
    except UserError as error:
        return update, {"error": str(error)}
    lines = runs.read_lines(Path(folder) / "metrics.jsonl")[2:]
    taken = [line for line in lines if line["groups/no_signal"] < 1]
    found = {
        "step_seconds": statistics.median(line["time/step_seconds"] for line in taken),
        "training_seconds": statistics.median(line["time/training_seconds"] for line in taken),
        "peak_bytes": result["peak_memory_bytes"],
    }
    shutil.rmtree(folder)
    return update, found


def tune(updates: Iterable[str], options: argparse.Namespace) -> dict[str, tuple[Cell, bool]]:
    """The best cell of every update among its tries, and whether it lies at their edge."""
    from modicum import recipes
    from modicum import updates as kinds
    from modicum.updates.preview import preview

    def cells(centres: dict[str, float], factors: tuple[float, ...]) -> list[Cell]:
        return [
            Cell(
                text,
                centre * factor,
                TUNE_SEED,
                "tune",
                options.tune_steps,
                f"{options.out}/{slug(text)}/tune-{centre * factor:.2e}",
            )
            for text, centre in centres.items()
            for factor in factors
        ]

    defaults = {
        text: recipes.start_rate(made, preview(made, "tiny").parameters)
        for text, made in ((text, kinds.parse(text)) for text in updates)
    }
    tried = list(run_all(cells(defaults, COARSE), options.jobs))
    centres = {text: cell.rate for text, (cell, _) in best(tried).items()}
    tried += run_all(cells(centres, FINE), options.jobs)
    return best(tried)


def best(cells: Iterable[tuple[Cell, dict[str, Any]]]) -> dict[str, tuple[Cell, bool]]:
    """The best tuning cell of every update, and whether it lies at the edge of the grid."""
    tried: dict[str, list[tuple[float, Cell]]] = {}
    for cell, row in cells:
        tried.setdefault(cell.update, []).append((row.get("accuracy", -1.0), cell))
    found = {}
    for update, pairs in tried.items():
        top = max(pairs, key=lambda pair: pair[0])[1]
        rates = sorted(cell.rate for _, cell in pairs)
        found[update] = (top, top.rate in (rates[0], rates[-1]))
    return found


def finals(chosen: dict[str, tuple[Cell, bool]], options: argparse.Namespace) -> list[Cell]:
    """The cells that are judged on the test split."""
    return [
        Cell(
            text,
            cell.rate,
            seed,
            "test",
            options.steps,
            f"{options.out}/{slug(text)}/seed-{seed}-{cell.rate:.2e}",
        )
        for text, (cell, _) in chosen.items()
        for seed in SEEDS
    ]


def run_all(cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The cells, each in a fresh process, so many at a time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modicum.training.loop", "modicum.evaluate", "peft"])
    began = time.perf_counter()
    with context.Pool(jobs, maxtasksperchild=1) as pool:
        for number, (cell, row) in enumerate(pool.imap_unordered(run, cells, chunksize=1), 1):
            shown = row.get("error") or f"{row['accuracy']:.1%}"
            print(
                f"{number}/{len(cells)} {time.perf_counter() - began:.0f} s"
                f"  {cell.update} at {cell.rate:g}, seed {cell.seed}: {shown}",
                flush=True,
            )
            yield cell, row


def study(options: argparse.Namespace, updates: list[str]) -> list[dict[str, Any]]:
    """Tune, train, and the rows of the table."""
    chosen = tune(updates, options)
    if "full" in chosen and not options.only:
        oracle = ORACLE.format(run=chosen["full"][0].folder)
        chosen |= tune([oracle], options)
    rows: dict[str, list[dict[str, Any]]] = {}
    for cell, row in run_all(finals(chosen, options), options.jobs):
        rows.setdefault(cell.update, []).append(row)
    return [
        {"update": text, "rate": cell.rate, "edge": edge, "runs": rows[text]}
        for text, (cell, edge) in chosen.items()
    ]


def table(rows: list[dict[str, Any]], times: dict[str, dict[str, Any]]) -> str:
    """The Markdown table, best first."""
    from scipy import stats

    lines = [
        "| update | rate | accuracy (95 % over seeds) | trained | optimizer bytes | s / step | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]

    def mean(row: dict[str, Any], key: str) -> float:
        return statistics.fmean(run.get(key, 0.0) for run in row["runs"])

    for row in sorted(rows, key=lambda row: -mean(row, "accuracy")):
        good = [100 * run["accuracy"] for run in row["runs"] if "accuracy" in run]
        if len(good) < len(SEEDS):
            lines.append(
                f"| `{row['update']}` | {row['rate']:.1e} | {len(SEEDS) - len(good)} of {len(SEEDS)} runs stopped | | | | |"
            )
            continue
        half = stats.t.ppf(0.975, len(good) - 1) * statistics.stdev(good) / len(good) ** 0.5
        cost = times.get(row["update"], {})
        shown = [
            f"`{row['update']}`",
            f"{row['rate']:.1e}{' *' if row['edge'] else ''}",
            f"{statistics.fmean(good):.1f} ± {half:.1f}",
            f"{mean(row, 'active_parameters_mean') / mean(row, 'total_parameters'):.2%}",
            f"{mean(row, 'optimizer_bytes'):,.0f}",
            f"{cost['step_seconds']:.2f}" if "step_seconds" in cost else "",
            f"{cost['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in cost else "",
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tune-steps", type=int, default=60)
    parser.add_argument("--only", default="", help="these updates, separated by ;")
    parser.add_argument("--out", default="runs/updates")
    parser.add_argument("--time", action="store_true", help="measure seconds and memory")
    parser.add_argument("--write", action="store_true", help="only write the table")
    options = parser.parse_args()
    updates = [text.strip() for text in options.only.split(";") if text.strip()] or UPDATES
    store = HERE / "updates.json"
    kept = json.loads(store.read_text()) if store.exists() else {"rows": [], "times": {}}
    if options.time:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["modicum.training.loop", "peft"])
        with context.Pool(1, maxtasksperchild=1) as pool:
            for update, found in pool.imap(measure, updates, chunksize=1):
                kept["times"][update] = found
                print(update, found, flush=True)
    elif not options.write:
        if options.jobs > 1:
            os.environ["OMP_NUM_THREADS"] = "1"
        fresh = study(options, updates)
        names = {row["update"] for row in fresh}
        kept["rows"] = [row for row in kept["rows"] if row["update"] not in names] + fresh
        kept["settings"] = {"steps": options.steps, "tune_steps": options.tune_steps}
    store.write_text(json.dumps(kept, indent=1) + "\n")
    text = PAGE.read_text()
    begin, end = (text.index(mark) for mark in MARKS)
    shown = table(kept["rows"], kept["times"])
    PAGE.write_text(text[: begin + len(MARKS[0])] + "\n" + shown + "\n" + text[end:])


if __name__ == "__main__":
    sys.exit(main())
