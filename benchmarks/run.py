"""modicum against TRL's GRPOTrainer: seconds a step and peak memory, on this machine.

    python benchmarks/run.py --trl-python .venv-bench/bin/python [--model FOLDER] [--steps 5] [--dtypes fp32,bf16]

Both train the same model folder on the same prompts with the same group size, length of
completions (fixed: nothing ends early), KL weight, trained part and dtype. Each is a
process of its own, and they take steps in turn, so that a slow spell of the machine meets
both. One warm-up step each, then the median of `--steps`. modicum proves in its first five
steps, and then in one of ten, that sampler and trainer agree; both ratios are in the table:
of the first steps as they were measured, and of later ones with a tenth of the proof's
seconds. Prints the table and writes benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modicum.config import TrainConfig

HERE = Path(__file__).parent
WORKERS = {"modicum": HERE / "modicum_worker.py", "trl": HERE / "trl_worker.py"}


@dataclass(frozen=True)
class Setting:
    """One row of the table: what is trained, on what."""

    model: str
    update: str
    kl: float
    prompts_per_step: int
    group_size: int
    max_tokens: int
    micro_batch: int
    train_layers: int = 0
    """For TRL: how many of the last layers train; 0 trains what the adapter or nothing says."""
    lora_rank: int = 0
    target: tuple[float, float] = (0.0, 0.0)
    """The ratio that was aimed at, in fp32 and in bf16."""


SMALL = ("small", 16, 8, 48, 64)
SMOL = ("SmolLM2-135M", 4, 8, 32, 16)


def setting(base: tuple[str, int, int, int, int], update: str, kl: float, **rest: Any) -> Setting:
    """A setting on one of the two models."""
    model, prompts, group, tokens, micro = base
    return Setting(model, update, kl, prompts, group, tokens, micro, **rest)


SETTINGS = (
    setting(SMALL, "full", 0.0, target=(2.5, 2.5)),
    setting(SMALL, "last(2)", 0.04, train_layers=2, target=(4.0, 4.0)),
    setting(SMOL, "full", 0.0, target=(4.5, 4.5)),
    setting(SMOL, "last(6)", 0.04, train_layers=6, target=(7.5, 10.0)),
    setting(SMOL, "lora(rank=8)", 0.04, lora_rank=8, target=(5.5, 6.0)),
)


class Worker:
    """A process that takes one step at a time; it imports what it needs before it has its job."""

    def __init__(self, kind: str, python: str, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [python, str(WORKERS[kind])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        self.ready: dict[str, Any] = {}

    def begin(self, job: dict[str, Any]) -> dict[str, Any]:
        """Give it its job; what it says when it is ready for the first step."""
        self.ready = self.ask(job)
        return self.ready

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a line and read the answer; the worker's last words if there is none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(message), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended: {self.log.read_text()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def median(steps: list[dict[str, float]], key: str) -> float:
    """The median of a field over the steps after the warm-up."""
    return statistics.median(step[key] for step in steps[1:])


def measure(
    made: Setting, dtype: str, folders: dict[str, str], options: Any, out: Path
) -> dict[str, Any]:
    """One row: both workers, step about."""
    job = asdict(made) | {
        "model": folders[made.model],
        "task": f"file({str(out.parent / 'problems.jsonl')!r})",
        "dtype": dtype,
        "threads": options.threads,
        "steps": options.steps + 1,
        "out": str(out / "modicum"),
    }
    ours = Worker("modicum", sys.executable, out / "modicum.log")
    prompts = ours.begin(job)["prompts"]
    job |= {"prompts": prompts, "out": str(out / "trl")}
    theirs = Worker("trl", options.trl_python, out / "trl.log")
    theirs.begin(job)
    steps: dict[str, list[dict[str, float]]] = {"modicum": [], "trl": []}
    for number in range(options.steps + 1):
        for name, worker in (("modicum", ours), ("trl", theirs)):
            steps[name].append(worker.ask({"go": True}))
        a, b = steps["modicum"][-1]["seconds"], steps["trl"][-1]["seconds"]
        print(f"  step {number}: modicum {a:.2f} s, TRL {b:.2f} s", file=sys.stderr, flush=True)
    ours.close()
    theirs.close()
    row: dict[str, Any] = {"model": made.model, "update": made.update, "kl": made.kl}
    row["prompt_tokens"] = ours.ready["prompt_tokens"]
    row |= {k: getattr(made, k) for k in ("prompts_per_step", "group_size", "max_tokens")}
    row |= {"dtype": dtype, "micro_batch": made.micro_batch, "target": made.target[dtype == "bf16"]}
    for name, found in steps.items():
        row[f"{name}_seconds"] = median(found, "seconds")
        row[f"{name}_peak_bytes"] = int(max(step["peak_bytes"] for step in found))
        sampling = median(found, "sampling")
        bare = statistics.median(s["seconds"] - s.get("agreement", 0.0) for s in found[1:])
        row[f"{name}_phases"] = {"sampling_seconds": sampling, "training_seconds": bare - sampling}
        row[f"{name}_steps"] = [step["seconds"] for step in found]
    row["ratio"] = row["trl_seconds"] / row["modicum_seconds"]
    row["agreement_seconds"] = median(steps["modicum"], "agreement")
    often = TrainConfig().compute.agreement_every
    row["later_seconds"] = sum(row["modicum_phases"].values()) + row["agreement_seconds"] / often
    row["later_ratio"] = row["trl_seconds"] / row["later_seconds"]
    row["memory_ratio"] = row["modicum_peak_bytes"] / row["trl_peak_bytes"]
    row["versions"] = {"modicum": ours.ready["versions"], "trl": theirs.ready["versions"]}
    row["machine"] = ours.ready["machine"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a reader."""
    lines = [
        "| model | update | dtype | KL | TRL s | first steps s | ratio | later s | ratio | aim |"
        " TRL GB | modicum GB | share | sampling | training |",
        "|" + " --- |" * 15,
    ]
    for row in rows:
        phases = [
            f"{row['trl_phases'][key]:.1f} -> {row['modicum_phases'][key]:.1f}"
            for key in ("sampling_seconds", "training_seconds")
        ]
        lines.append(
            f"| {row['model']} | `{row['update']}` | {row['dtype']} | {row['kl']:g} | {row['trl_seconds']:.2f} |"
            f" {row['modicum_seconds']:.2f} | {row['ratio']:.2f} | {row['later_seconds']:.2f} |"
            f" **{row['later_ratio']:.2f}** | {row['target']:g} |"
            f" {row['trl_peak_bytes'] / 1e9:.2f} | {row['modicum_peak_bytes'] / 1e9:.2f} |"
            f" {row['memory_ratio']:.2f} | {phases[0]} | {phases[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every setting, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", default=str(HERE.parent / ".venv-bench/bin/python"))
    parser.add_argument("--model", default="runs/bench/SmolLM2-135M", help="the real model")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after one warm-up")
    parser.add_argument("--only", default="", help="rows whose 'model update' contains this")
    parser.add_argument("--dtypes", default="fp32,bf16", help="which of fp32 and bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", default=str(HERE / "results.json"))
    options = parser.parse_args()
    from inputs import write_problems, write_small_model

    began = time.perf_counter()
    path = Path(options.out)
    # Rows that are not measured again stay; each is a comparison of its own.
    kept = json.loads(path.read_text()) if options.only and path.exists() else []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        write_problems(out / "problems.jsonl")
        write_small_model(out / "small")
        folders = {"small": str(out / "small"), "SmolLM2-135M": options.model}
        asked = [s for s in SETTINGS if options.only in f"{s.model} {s.update}"]
        for dtype, row in itertools.product(options.dtypes.split(","), asked):
            print(f"{row.model} {row.update} {dtype}", file=sys.stderr, flush=True)
            place = out / f"row{len(rows)}"
            place.mkdir()
            rows.append(measure(row, dtype, folders, options, place))
            fresh = {(r["model"], r["update"], r["dtype"]) for r in rows}
            every = [r for r in kept if (r["model"], r["update"], r["dtype"]) not in fresh] + rows
            path.write_text(json.dumps(every, indent=1) + "\n")
    print(table(rows))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; {options.out}")


if __name__ == "__main__":
    main()
