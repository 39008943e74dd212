"""A long run whose vLLM server is killed at random moments: no step may be lost, none drawn stale.

    MODICUM_VLLM_PYTHON=.../bin/python python scripts/vllm_soak.py
    python scripts/vllm_soak.py --steps 30 --kills 2 --out runs/short

Trains 300 steps of the tiny base with `--sampler vllm(...)`. Ten of them, drawn from the seed, are to
lose their server: at a moment drawn from the length of a step, one of its processes is ended by SIGKILL.
The run must go on by itself. Afterwards

    steps       metrics.jsonl has one line a step, in order, without a gap
    versions    every completion of every step has the version of the weights that the trainer has
    moved       the versions differ from step to step wherever the step before has trained
    kills       so many processes were ended, and as many servers were begun anew
    left        no process of a server is left

The report is OUT/soak.json; exit code 1 when anything is wrong. Linux only (it reads /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from modicum import runs
from modicum.config import Compute, Held, Optimizer, Records, Sampling, Steps, TrainConfig
from modicum.training import step
from modicum.training.loop import Observer, train

SAMPLER = "vllm(python={!r}, memory=0.2)"  # on a CPU of the machine's, which others use too
MODULE = "vllm.entrypoints"
SPARED = ("resource_tracker", "keeper")
"""What is no server: a helper of Python's, and what ends a server when the run does."""


def descendants(of: int) -> list[int]:
    """The processes that a process has begun, and those that these have."""
    parents = dict[int, list[int]]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name stands in brackets and may have spaces.
                rest = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            parents.setdefault(int(rest[1]), []).append(int(entry.name))
    found, new = list[int](), [of]
    while new:
        new = [child for parent in new for child in parents.get(parent, [])]
        found += new
    return found


def command_of(number: int) -> str:
    """The command of a process; empty: it has ended."""
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def servers() -> dict[int, str]:
    """The processes below this one that have to do with vLLM, with their commands; not what is `SPARED`."""
    found = {number: command_of(number) for number in descendants(os.getpid())}
    return {
        number: line
        for number, line in found.items()
        if "vllm" in line.lower() and not any(word in line for word in SPARED)
    }


class Killer(Observer):
    """Ends a process of the server in some steps; tells what a run notes."""

    def __init__(self, steps: int, kills: int, seed: int) -> None:
        self.draw = random.Random(seed)
        # Not in the first two, which say how long a step takes, nor where no step may follow.
        self.due = set(self.draw.sample(range(2, steps - 3), kills)) if kills else set()
        self.done: list[dict[str, Any]] = []
        self.begun = dict[int, str]()  # the servers that were seen
        self.seconds, self.threads = list[float](), list[threading.Thread]()

    def step(self, metrics: dict[str, float]) -> None:
        self.seconds.append(metrics["time/step_seconds"])
        self.begun |= {n: line for n, line in servers().items() if MODULE in line}
        coming = int(metrics["step"]) + 1
        if coming in self.due:
            after = self.draw.uniform(0.0, statistics.median(self.seconds))
            choice = self.draw.random()
            self.threads.append(threading.Thread(target=self.kill, args=(coming, after, choice)))
            self.threads[-1].start()

    def kill(self, at: int, after: float, choice: float) -> None:
        """One of the server's processes, after so many seconds."""
        time.sleep(after)
        there = servers()
        if there:
            number = sorted(there)[int(choice * len(there))]
            os.kill(number, signal.SIGKILL)
            entry = {"step": at, "after": round(after, 3), "process": there[number][:120]}
            self.done.append(entry)
            print(json.dumps(entry), flush=True)

    def left(self) -> dict[int, str]:
        """The servers that live, whoever is their parent now."""
        return {n: line for n, line in self.begun.items() if command_of(n) == line}

    def note(self, text: str) -> None:
        print(text, flush=True)


class Watched:
    """The versions of the completions of every step, as the trainer's proof of them is asked."""

    def __init__(self) -> None:
        self.versions: list[tuple[str, list[str], int]] = []
        self.proof = step.require_origin

    def __call__(self, groups: Any, sampling: Any, version: str) -> None:
        drawn = [c.origin.weights for group in groups for c in group.completions]
        self.versions.append((version, sorted(set(drawn)), len(drawn)))
        self.proof(groups, sampling, version)


def wrong(
    found: Watched, lines: list[dict[str, Any]], killer: Killer, config: TrainConfig
) -> list[str]:
    """What is not as it must be, a line each."""
    faults = list[str]()
    if [line["step"] for line in lines] != list(range(config.steps)):
        faults.append(f"metrics.jsonl has {len(lines)} lines for {config.steps} steps, or a gap")
    if len(found.versions) != config.steps:
        faults.append(f"{len(found.versions)} rollouts for {config.steps} steps")
    each = config.batch.prompts_per_step * config.batch.group_size
    for at, (version, drawn, count) in enumerate(found.versions):
        if drawn != [version] or count != each:
            faults.append(
                f"step {at}: {count} completions of {drawn}, and the trainer has {version}"
            )
    for at in range(1, min(len(lines), len(found.versions))):
        moved = found.versions[at][0] != found.versions[at - 1][0]
        if moved != ("policy/loss" in lines[at - 1]):
            faults.append(f"step {at}: the version {'changed' if moved else 'stayed'}")
    if killer.done and len(killer.begun) - 1 < len(killer.done):
        faults.append(f"{len(killer.begun)} servers were seen, after {len(killer.done)} kills")
    if len(killer.done) != len(killer.due):
        faults.append(f"{len(killer.done)} of {len(killer.due)} kills met a process")
    return faults


def main() -> None:
    """Train, kill, check; exit code 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/vllm_soak"))
    parser.add_argument("--update", default="last(1)")
    parser.add_argument("--sampler", help="another one, with --kills 0")
    asked = parser.parse_args()
    python = os.environ.get("MODICUM_VLLM_PYTHON", "")
    if not asked.sampler and not python:
        sys.exit(
            "MODICUM_VLLM_PYTHON names the interpreter of vLLM's environment (scripts/vllm_env.sh)"
        )
    config = TrainConfig(
        task="arithmetic(terms=2, digits=1)",
        update=asked.update,
        steps=asked.steps,
        seed=asked.seed,
        out=str(asked.out),
        sampling=Sampling(max_tokens=24),
        batch=Steps(prompts_per_step=4, group_size=4),
        optimizer=Optimizer(learning_rate=1e-4),
        compute=Compute("cpu", sampler=asked.sampler or SAMPLER.format(python)),
        evaluation=Held(eval_problems=0),
        records=Records(anatomy=False),
    )
    killer = Killer(asked.steps, asked.kills, asked.seed)
    found = step.require_origin = Watched()  # type: ignore[assignment]
    began = time.monotonic()
    result = train(replace(config), killer, overwrite=True)
    seconds = time.monotonic() - began
    for thread in killer.threads:
        thread.join()
    lines = list(runs.read_lines(asked.out / "metrics.jsonl"))
    faults = wrong(found, lines, killer, config)
    report = {
        "steps": len(lines),
        "seconds": round(seconds, 1),
        "kills": killer.done,
        "completions": sum(count for *_, count in found.versions),
        "change_proof": result["change_proof"],
        "servers": len(killer.begun),
        "wrong": faults
        + [f"left: {n}, {line[:120]}" for n, line in {**killer.left(), **servers()}.items()],
    }
    (asked.out / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "kills"}, indent=1))
    sys.exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
