"""What a trunk in 4 bits costs and saves: NF4 beside bf16, SmolLM2-135M on sums below 20.

    python benchmarks/quantise.py [--steps 20] [--seeds 0 1 2] [--only 'nf4 last(6) 0']

A cell is a run of `modicum train --recipe addition` in a process of its own: bf16 or NF4, `last(6)` or
`lora(rank=8)`, a seed. Finished cells are kept in runs/quantise, and one that was stopped goes on, so the same
command goes on with what is left. Of each: peak memory of the process, seconds of training, held-out accuracy
of the base and of the policy. Compared by pairs, problem by problem, seeds together: NF4 less bf16, with the
95 % interval. The base of NF4 is the rounded model, so the two have different bases; both are shown. Writes
benchmarks/quantise.json.
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

HERE, FOLDER = Path(__file__).parent, Path("runs/quantise")
RATES = {"last(6)": "4e-5", "lora(rank=8)": "2e-4"}
HOW = ("bf16", "nf4")


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
            **{"--dtype": "bf16", "--quantise": "nf4" if how == "nf4" else ""},
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


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each update what NF4 makes of memory, time and accuracy, over the seeds that both have."""
    found = []
    for update in dict.fromkeys(row["update"] for row in rows):
        of = {
            how: {r["seed"]: r for r in rows if (r["how"], r["update"]) == (how, update)}
            for how in HOW
        }
        seeds = sorted(of["bf16"].keys() & of["nf4"].keys())
        if not seeds:
            continue
        line: dict[str, Any] = {"update": update, "seeds": seeds}
        for name in ("seconds", "peak_bytes"):
            line[name] = statistics.median(of["nf4"][s][name] / of["bf16"][s][name] for s in seeds)
        for name in ("base", "trained"):
            both = [[score for s in seeds for score in of[how][s][name]] for how in HOW]
            interval = paired_interval(both[1], both[0])
            line[name] = [*map(statistics.fmean, both), interval.low, interval.high]
        found.append(line)
    return found


def main() -> None:
    """Make what is missing, in an order that pairs are complete early, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", help="one cell: how, update and seed, such as 'nf4 last(6) 0'")
    parser.add_argument("--out", default=str(HERE / "quantise.json"))
    options = parser.parse_args()
    cells = [(how, update, seed) for seed, update, how in product(options.seeds, RATES, HOW)]
    if options.only:
        cells = [of for of in cells if " ".join(map(str, of)) == options.only]
    rows = []
    for how, update, seed in cells:
        rows.append(cell(how, update, seed, options))
        found = {"machine": machine.environment(), "rows": rows, "compared": compared(rows)}
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
    print("| update | seeds | memory, of bf16 | seconds | base: bf16, NF4, difference | trained |")
    print("|---|---|---|---|---|---|")
    for line in compared(rows):
        shares = (
            f"{a:.1%}, {b:.1%}, [{low:+.1%}, {high:+.1%}]"
            for a, b, low, high in (line["base"], line["trained"])
        )
        sizes = f"{line['peak_bytes']:.2f} | {line['seconds']:.2f}"
        print(f"| `{line['update']}` | {len(line['seeds'])} | {sizes} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
