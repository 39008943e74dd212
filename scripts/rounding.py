"""What rounding does to a comparison in bf16: fp32, bf16 to nearest, bf16 by chance.

    python scripts/rounding.py --out rounding.json                    27 runs of 16 steps
    python scripts/rounding.py --out rounding.json --only nearest     some of them
    python scripts/rounding.py --out rounding.json --table            what is there, as Markdown

Recipe `addition` on SmolLM2-135M, `full`, `last(6)` and `lora(rank=8)` at the rates that change
the policy equally in their first step (KL 0.01), three seeds. Every run is a process of its
own in `--runs`, named UPDATE-KIND-SEED; a finished one is not run again, one that was cut goes
on. Each adds a row to `--out`; then its checkpoints are deleted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum import runs, stats

RATES = {"full": 1.09e-5, "last(6)": 8.8e-5, "lora(rank=8)": 2.7e-4}
KINDS = {
    "fp32": ("fp32", "none"),
    "nearest": ("bf16", "nearest"),
    "stochastic": ("bf16", "stochastic"),
}
SEEDS = range(3)
STEPS, WINDOW = 16, 4
BY_STEP = {
    "accuracy": "reward/accuracy",
    "arrived": "update/arrived",
    "seconds": "time/step_seconds",
    "sampling_seconds": "time/sampling_seconds",
    "training_seconds": "time/training_seconds",
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    update: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        update = "".join(c if c.isalnum() else "-" for c in self.update).strip("-")
        return f"{update}-{self.kind}-{self.seed}"

    @property
    def key(self) -> dict[str, Any]:
        """What tells its row from others."""
        dtype, rounding = KINDS[self.kind]
        return {"update": self.update, "seed": self.seed, "dtype": dtype, "rounding": rounding}

    def train(self, folder: Path, model: str) -> None:
        """Run it in a process of its own, or go on with it."""
        dtype, rounding = KINDS[self.kind]
        command = [sys.executable, "-m", "modicum", "train", "--recipe", "addition"]
        command += ["--out", str(folder), "--model", model, "--update", self.update]
        command += ["--learning-rate", str(RATES[self.update]), "--steps", str(STEPS)]
        command += ["--seed", str(self.seed), "--dtype", dtype]
        command += ["--rounding", rounding] if dtype == "bf16" else []
        command += ["--eval-problems", "0", "--no-anatomy", "--agreement-every", "0"]
        command += ["--checkpoint-every", "4"]
        command.append("--resume" if runs.checkpoints(folder) else "--overwrite")
        subprocess.run(command, check=False)

    def row(self, folder: Path) -> dict[str, Any]:
        """What its finished folder says; null for a step without a number."""
        lines = runs.read_lines(folder / "metrics.jsonl")
        steps = {name: [line.get(key) for line in lines] for name, key in BY_STEP.items()}
        return {**self.key, "rate": RATES[self.update], **steps}


def cells(only: str) -> Iterator[Cell]:
    """All whose update, kind and seed have `only` in them, a seed of each first."""
    for seed, update, kind in itertools.product(SEEDS, RATES, KINDS):
        cell = Cell(update, kind, seed)
        if only in f"{update} {kind} {seed}" or only in cell.name:
            yield cell


def read(out: Path) -> list[dict[str, Any]]:
    """The rows that are there."""
    return json.loads(out.read_text()) if out.exists() else []


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """All rows, a line each; the old file stays until the new one is whole."""
    part = out.with_name(out.name + ".part")
    part.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    os.replace(part, out)


def table(rows: list[dict[str, Any]]) -> str:
    """Strict accuracy in windows of steps, its mean over seeds with 95 % t-intervals."""
    windows = range(0, STEPS, WINDOW)
    heads = [f"steps {start + 1}-{start + WINDOW}" for start in windows]
    found = ["| update | compute | rounding | seeds | " + " | ".join(heads)]
    found[0] += " | arrived at the end | seconds a step | sampling | training |"
    found.append("| --- " * (len(heads) + 8) + "|")
    for update, (dtype, rounding) in itertools.product(RATES, KINDS.values()):
        key = {"update": update, "dtype": dtype, "rounding": rounding}
        chosen = [row for row in rows if key.items() <= row.items()]
        if not chosen:
            continue
        shown = [_share([_mean(r["accuracy"][at : at + WINDOW]) for r in chosen]) for at in windows]
        last = [row["arrived"][-1] for row in chosen if row["arrived"][-1] is not None]
        shown.append(f"{_mean(last):.0%}" if last else "all")
        for name in ("seconds", "sampling_seconds", "training_seconds"):
            shown.append(f"{_mean([_mean(row[name]) for row in chosen]):.1f}")
        first = f"| `{update}` | {dtype} | {rounding} | {len(chosen)} | "
        found.append(first + " | ".join(shown) + " |")
    return "\n".join(found)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _share(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.0%}"
    found = stats.mean_interval(values, [0.0] * len(values))
    return f"{found.mean:.0%} [{max(0.0, found.low):.0%}, {found.high:.0%}]"


def main() -> int:
    """Run what is missing, or print the table; 1 when a run did not end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of the rows")
    parser.add_argument("--runs", type=Path, default=Path("runs/rounding"), help="their folders")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--only", default="", help="only cells with this in update, kind or seed")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.out)))
        return 0
    missing = 0
    for cell in cells(options.only):
        rows, folder = read(options.out), options.runs / cell.name
        if any(cell.key.items() <= row.items() for row in rows):
            continue
        if not (folder / "result.json").exists():
            cell.train(folder, options.model)
        if not (folder / "result.json").exists():
            print(f"{cell.name} did not end", file=sys.stderr)
            missing += 1
            continue
        write(options.out, [*rows, cell.row(folder)])
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return 1 if missing else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
