"""Golden runs: short runs of many updates and losses, whose numbers must not change unmeant.

    python scripts/golden.py                 compare with scripts/golden.json (3 minutes)
    python scripts/golden.py --write         make that file anew
    python scripts/golden.py --against REV   run REV on this machine and compare with it

Last bits differ between processors, so the file holds on a machine like the one that made
it; elsewhere `--against` compares two commits on the machine at hand. Six steps each on the
tiny base; of every run the hashes of its metrics (times and memory left out), decisions,
and all tensors of the last checkpoint. One thread a run, so that sums have one order.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILE = HERE / "golden.json"
UPDATES = {
    "full": 2e-4,
    "last(1)": 2e-4,
    "lora(rank=8)": 2e-3,
    "lisa(every=2)": 2e-4,
    "badam(every=2)": 2e-4,
    "adalora(warmup=1, tail=1)": 1e-2,
    "sparse(keep=0.05)": 8e-4,
    "galore(rank=4) @ last(2)": 8e-4,
    "rgn": 2e-4,
    "pissa": 4e-4,
}
"""With their learning rates."""
OBJECTIVES = ("grpo", "grpo(kl=0.04)", "dr_grpo", "dapo")
UPDATES_PER_ROLLOUT = (1, 2)
FORWARDS = {
    "kept": {"engine": "split"},
    "recomputed": {"engine": "split", "trunk_bytes": 0},
    "library": {"engine": "library"},
}
UNMEANT = ("time/", "memory/")
NEW = ("curriculum/", "groups/signal", "groups/empty_steps", "policy/effective_rate")
"""Metrics, or groups of them, that came after the file was made."""


def cases() -> list[tuple[str, str, int, str]]:
    """Every update with every loss, number of updates and forward."""
    return list(itertools.product(UPDATES, OBJECTIVES, UPDATES_PER_ROLLOUT, FORWARDS))


def name_of(case: tuple[str, str, int, str]) -> str:
    """The key of a case in the file."""
    return " | ".join(map(str, case))


def run(case: tuple[str, str, int, str]) -> tuple[str, dict[str, Any]]:
    """Train one case in a folder of its own; its hashes."""
    import torch

    from modicum.config import Held, Optimizer, Records, Sampling, Steps, TrainConfig

    try:
        from modicum.training.loop import train
    except ImportError:
        from modicum.train import train  # before there was a package `training`

    torch.set_num_threads(1)
    update, objective, updates, forward = case
    config = TrainConfig(
        update=update,
        objective=objective,
        steps=6,
        sampling=Sampling(max_tokens=24),
        batch=Steps(prompts_per_step=4, group_size=4, updates_per_rollout=updates, micro_batch=6),
        optimizer=Optimizer(learning_rate=UPDATES[update]),
        evaluation=Held(eval_problems=0),
        records=Records(checkpoint_every=0, anatomy=False),
    )
    config = replace(
        config, compute=replace(config.compute, agreement_every=3, **FORWARDS[forward])
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(replace(config, out=str(out)))
        return name_of(case), hashes(out)


def hashes(folder: Path) -> dict[str, Any]:
    """What a run came to: the last loss and norm to look at, hashes to compare."""
    from safetensors.numpy import load_file

    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in sorted(step.items()) if not k.startswith(UNMEANT + NEW)} for step in steps
    ]
    decisions = folder / "decisions.jsonl"
    (checkpoint,) = (folder / "checkpoints").iterdir()
    tensors = hashlib.sha256()
    for name, tensor in sorted(load_file(checkpoint / "tensors.safetensors").items()):
        tensors.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        tensors.update(tensor.tobytes())
    trained = [step for step in steps if "policy/loss" in step]
    return {
        "loss": trained[-1]["policy/loss"] if trained else None,
        "trained_steps": len(trained),
        "metrics": _hash(json.dumps(kept)),
        "decisions": _hash(decisions.read_text() if decisions.exists() else ""),
        "tensors": tensors.hexdigest()[:16],
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_all(part: str) -> dict[str, dict[str, Any]]:
    """All cases whose name has `part` in it, two at a time."""
    chosen = [case for case in cases() if part in name_of(case)]
    found = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name, values in pool.map(run, chosen):
            found[name] = values
            if len(found) % 40 == 0:
                print(f"{len(found)} of {len(chosen)}", file=sys.stderr, flush=True)
    return found


def run_of(revision: str, part: str) -> dict[str, dict[str, Any]]:
    """All cases as another commit runs them, in a work tree of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder) / "tree", Path(folder) / "golden.json"
        git = ["git", "-C", str(HERE)]
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree, revision], check=True)
        try:
            script = [sys.executable, __file__, "--part", part, "--write", "--file", out]
            subprocess.run(script, check=True, env=os.environ | {"PYTHONPATH": f"{tree}/src"})
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", tree], check=True)
        return json.loads(out.read_text())


def main() -> int:
    """Compare or write; 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="make the file anew")
    parser.add_argument("--against", metavar="REV", help="compare with this commit, run here")
    parser.add_argument("--part", default="", help="only cases whose name has this in it")
    parser.add_argument("--file", type=Path, default=FILE)
    args = parser.parse_args()
    now = run_all(args.part)
    if args.write:
        lines = [f"{json.dumps(name)}: {json.dumps(now[name])}" for name in now]
        args.file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return 0
    past = run_of(args.against, args.part) if args.against else json.loads(args.file.read_text())
    differ = [name for name in now if now[name] != past.get(name)]
    for name in differ:
        print(f"differs: {name}\n  was {past.get(name)}\n  is  {now[name]}")
    print(f"{len(now) - len(differ)} of {len(now)} golden runs are equal")
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
