"""One process against two on the same cores: seconds a step, and bytes of each beside its plan.

    python benchmarks/parallel.py [--model models/SmolLM2-135M-Instruct] [--steps 6]

One process has all threads, two have half of them each (`--parallel ddp`, `zero` and `fsdp`); runs one after
the other, with the same problems and, but for near ties, the same tokens. Seconds are medians
of the first process after two steps of warm-up; bytes are the peak of
the first process's memory, less what it held before a model was loaded, as in a plan.
Prints a table and writes benchmarks/parallel.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WARM = 2
REFUSED = {("fsdp", "lora(rank=8)")}
UPDATES = ("full", "last(6)", "lora(rank=8)")
SIZES = ("--prompts-per-step=4", "--group-size=8", "--max-tokens=32", "--micro-batch=16")
SIZES += ("--rollout-batch=32", "--eval-problems=0", "--learning-rate=1e-6", "--checkpoint-every=0")


def run(options: argparse.Namespace, update: str, way: str, out: Path) -> dict[str, Any]:
    """A run's seconds, peak bytes and generated tokens."""
    count = 1 if way == "none" else 2
    launch = [sys.executable, "-m", "modicum"]
    if count > 1:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        launch += ["-m", "modicum"]
    task = ["--recipe", "addition", "--update", update, "--parallel", way, "--out", str(out)]
    more = ["--model", options.model, "--steps", str(options.steps), "--no-anatomy", *SIZES]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    done = subprocess.run(
        [*launch, "train", *task, *more], capture_output=True, text=True, env=os.environ | threads
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    held = json.loads((out / "result.json").read_text())["start_memory_bytes"]
    return {
        "seconds": statistics.median(line["time/step_seconds"] for line in lines[WARM:]),
        "peak_bytes": max(line["memory/peak_bytes"] for line in lines) - held,
        "tokens": lines[-1]["tokens/generated"],
        "grad_norms": [line.get("policy/grad_norm", 0.0) for line in lines],
    }


def main() -> None:
    """Run every update in every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ways", default="none ddp zero fsdp")
    parser.add_argument("--updates", default="; ".join(UPDATES))
    options = parser.parse_args()
    rows, ways = [], options.ways.split()
    for update in options.updates.split("; "):
        found = {}
        for way in [way for way in ways if (way, update) not in REFUSED]:
            with tempfile.TemporaryDirectory() as folder:
                found[way] = run(options, update, way, Path(folder) / "run")
            print(update, way, found[way], file=sys.stderr, flush=True)
        counts = [of["tokens"] for of in found.values()]
        assert max(counts) < 1.05 * min(counts), (update, counts)
        rows.append({"model": options.model, "update": update, **found})
        (HERE / "parallel.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| update |", *(f"`{way}` s, GB |" for way in ways))
    print("|" + " --- |" * (1 + len(ways)))
    for row in rows:
        cells = [row.get(way) for way in ways]
        told = [f"{of['seconds']:.2f}, {of['peak_bytes'] / 1e9:.2f}" if of else "" for of in cells]
        print(f"| `{row['update']}` |", " | ".join(told), "|")


if __name__ == "__main__":
    main()
