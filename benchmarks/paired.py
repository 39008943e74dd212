"""What one setting does to a run beside bf16 alone, in pairs: SmolLM2-135M on sums below 20.

    python benchmarks/paired.py nf4 [--steps 20] [--seeds 0 1 2]     # the trunk rests in 4 bits
    MODICUM_VLLM_PYTHON=... python benchmarks/paired.py vllm         # a vLLM server draws

A cell is a run of `modicum train --recipe addition` in a process of its own: with the setting or without,
`last(6)` or `lora(rank=8)`, a seed. Finished cells are kept in benchmarks/paired.json, and one that was stopped
goes on in runs/paired, so the same command goes on with what is left. Of each: peak memory of the process,
seconds of training, held-out accuracy of the base and of the policy. Compared problem by problem, seeds
averaged: with the setting less without, with the 95 % interval over problems. The base of NF4 is the rounded model. A run's own
evaluation draws four completions a problem, the same noise for every seed, so that its luck is shared by all of
them, and under vLLM its noise is another: `again` are both policies once more, sixteen completions a problem of
this process, the same noise for both (`modicum evaluate --sampler local`). The server's memory is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

from modicum import machine
from modicum.stats import paired_interval

SAMPLES = 16
HERE, FOLDER = Path(__file__).parent, Path("runs/paired")
RATES = {"last(6)": "4e-5", "lora(rank=8)": "2e-4"}
PLAIN = "bf16"
HOW = {
    PLAIN: {},
    "nf4": {"--quantise": "nf4"},
    "vllm": {"--sampler": "vllm(memory=0.1)"},
}
Rows = dict[tuple[str, str, int, int], dict[str, Any]]


def cell(how: str, update: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run, made if it is not there; its numbers."""
    folder = FOLDER / f"{how}-{update}-{seed}-{options.steps}"
    made = folder / "result.json"
    if not made.is_file():
        settings = {
            **{"--recipe": "addition", "--model": options.model, "--update": update},
            **{
                "--learning-rate": RATES[update],
                "--steps": str(options.steps),
                "--seed": str(seed),
            },
            **{"--dtype": "bf16", **HOW[how]},
            **{"--eval-problems": str(options.problems), "--checkpoint-every": "5"},
            **{"--out": str(folder)},
        }
        command = [sys.executable, "-m", "modicum", "train", "--no-anatomy"]
        command += [word for pair in settings.items() for word in pair]
        command += ["--resume"] if (folder / "config.toml").is_file() else []
        if (code := subprocess.run(command, check=False).returncode) not in (0, 3):
            sys.exit(f"{folder}: the run ended with code {code}")
    found = json.loads(made.read_text())
    return {
        **{"how": how, "update": update, "seed": seed, "steps": options.steps},
        "base": found["base"]["scores"],
        "trained": found["trained"]["scores"],
        "seconds": found["seconds"],
        "peak_bytes": found["peak_memory_bytes"],
        "agreement_proof": found["agreement_proof"],
    }


def again(row: dict[str, Any], options: argparse.Namespace) -> list[float]:
    """What the policy of a cell comes to in more completions, drawn by this process."""
    folder = FOLDER / f"{row['how']}-{row['update']}-{row['seed']}-{row['steps']}"
    command = [sys.executable, "-m", "modicum", "evaluate", str(folder), "--json"]
    command += ["--sampler", "local", "--dtype", "bf16", "--problems", str(options.problems)]
    command += ["--samples", str(SAMPLES), "--seed", "7"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["scores"]


def compared(rows: Rows, how: str) -> list[dict[str, Any]]:
    """Of each update what the setting makes of memory, time and accuracy, over the seeds that both have."""
    found = []
    for update in RATES:
        runs = [
            {key[2]: row for key, row in rows.items() if key[:2] == (of, update)}
            for of in (PLAIN, how)
        ]
        seeds = sorted(runs[0].keys() & runs[1].keys())
        if not seeds:
            continue
        line: dict[str, Any] = {"how": how, "update": update, "seeds": seeds}
        for name in ("seconds", "peak_bytes"):
            line[name] = statistics.median(runs[1][s][name] / runs[0][s][name] for s in seeds)
        for name in ("base", "trained", "again"):
            if not all(name in of[s] for of in runs for s in seeds):
                continue
            both = [
                [*map(statistics.fmean, zip(*(of[s][name] for s in seeds), strict=True))]
                for of in runs
            ]
            interval = paired_interval(both[1], both[0])
            line[name] = [*map(statistics.fmean, both), interval.low, interval.high]
        found.append(line)
    return found


def main() -> None:
    """Make what is missing, in an order that pairs are complete early, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("how", choices=[how for how in HOW if how != PLAIN])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", default=str(HERE / "paired.json"))
    options = parser.parse_args()
    out, rows = Path(options.out), Rows()
    known = json.loads(out.read_text()) if out.is_file() else {"rows": []}
    for row in known["rows"]:
        rows[row["how"], row["update"], row["seed"], row["steps"]] = row
    for seed, update, how in product(options.seeds, RATES, (PLAIN, options.how)):
        key = (how, update, seed, options.steps)
        row, twice = rows.get(key, {}), options.how == "vllm"
        if not row or (twice and "again" not in row):
            row = cell(how, update, seed, options)
            row |= {"again": again(row, options)} if twice else {}
        rows[key] = row
        lines = [line for of in HOW if of != PLAIN for line in compared(rows, of)]
        found = {"machine": machine.environment(), "rows": [*rows.values()], "compared": lines}
        out.write_text(json.dumps(found, indent=1) + "\n")
    head = f"base: bf16, {options.how}, difference | trained | again |"
    print(f"| update | seeds | memory, of bf16 | seconds | {head}")
    print("|---|---|---|---|---|---|---|")
    for line in compared(rows, options.how):
        shares = (
            f"{a:.1%}, {b:.1%}, {b - a:+.1%} [{low:+.1%}, {high:+.1%}]"
            for a, b, low, high in (line[n] for n in ("base", "trained", "again") if n in line)
        )
        sizes = f"{line['peak_bytes']:.2f} | {line['seconds']:.2f}"
        print(f"| `{line['update']}` | {len(line['seeds'])} | {sizes} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
