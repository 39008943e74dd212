"""What several test files use: quick command-line runs, and runs without their measurements."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modicum import cli, runs

MEASURED = ("time/", "memory/")
QUICK = [
    *("--steps", "1", "--prompts-per-step", "2", "--group-size", "2", "--max-tokens", "6"),
    *("--eval-problems", "2", "--eval-samples", "1"),
]
ENDED = (0, 3)  # exit codes of a run that ended: a random model is seldom right and learns nothing
Fails = Callable[..., str]


def modicum(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `modicum args` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "modicum", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def engine_of(model: Any, kind: Any = "auto", lowest: int = -1) -> Any:
    """The engine of a model on the CPU."""
    import torch

    from modicum.config import Compute
    from modicum.engine import make

    return make(model, torch.device("cpu"), lowest, Compute(engine=kind))


def make_run(out: Path, model: Path, *args: str) -> Path:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        options = [*QUICK, "--model", str(model), "--out", str(out), "--json", *args]
        assert cli.run(["train", *options]) in ENDED
    return out


def replace_base(folder: Path) -> None:
    """Put another base of the same shapes into a model folder: one number of it differs."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    os.replace(folder / "new", path)


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run without what is measured and differs from run to run."""
    lines = runs.read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(MEASURED)} for line in lines]


def tensors_of(folder: Path) -> dict[str, str]:
    """Fingerprints of all tensors in the newest checkpoint, optimizer state included."""
    from safetensors.torch import load_file

    from modicum.updates.proofs import fingerprints

    return fingerprints(load_file(runs.checkpoints(folder)[-1] / "tensors.safetensors"))
