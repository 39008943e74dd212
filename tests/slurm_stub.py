"""sbatch, srun, sacct, squeue and scancel of a cluster of one machine, as far as submitit asks.

A job is a process that runs the script; FOLDER/ID.pid and FOLDER/ID.state say how it stands, and
FOLDER/sbatch.txt has all scripts.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("sbatch", "srun", "sacct", "squeue", "scancel")
FOLDER = Path(os.environ.get("SLURM_STUB", "."))


def install(folder: Path) -> Path:
    """The commands in `folder`/bin, which is to be in PATH; returns it."""
    bin = folder / "bin"
    bin.mkdir()
    for name in NAMES:
        path = bin / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        path.chmod(0o755)
    return bin


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    with (FOLDER / "sbatch.txt").open("a") as file:
        file.write(text)
    number = time.time_ns() // 1000  # submitit remembers how others have ended
    array = re.search(r"--array=0-(\d+)", text)
    tasks = [f"{number}_{n}" for n in range(int(array[1]) + 1)] if array else [str(number)]
    for task in tasks:
        (FOLDER / f"{task}.state").write_text("PENDING")
        subprocess.Popen(
            [sys.executable, __file__, "job", task, script],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    print(f"Submitted batch job {number}")


def job(task: str, script: str) -> None:
    """One job of an array: runs the script and says how it ended."""
    number, _, place = task.partition("_")
    own = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    own |= {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    own |= {"SLURM_JOB_NODELIST": os.uname().nodename}
    own |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": place} if place else {}
    gpus = re.search(r"--gpus-per-node=(\d+)", Path(script).read_text())
    own["CUDA_VISIBLE_DEVICES"] = place or "0" if gpus and gpus[1] != "0" else ""
    running = subprocess.Popen(["bash", script], env={**os.environ, **own})
    (FOLDER / f"{task}.pid").write_text(str(running.pid))
    state = FOLDER / f"{task}.state"
    state.write_text("RUNNING")
    code = running.wait()
    if state.read_text() == "RUNNING":
        state.write_text("FAILED" if code else "COMPLETED")


def srun(*words: str) -> None:
    """Runs the command that follows the options, as a child of the script."""
    start = next(n for n, word in enumerate(words) if "python" in word)
    sys.exit(subprocess.call(words[start:]))


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for path in FOLDER.glob("*.state"):
        print(f"{path.stem}|{path.read_text()}|here")


squeue = sacct


def scancel(task: str) -> None:
    pid, state = FOLDER / f"{task}.pid", FOLDER / f"{task}.state"
    if pid.exists() and state.read_text() == "RUNNING":
        state.write_text("CANCELLED")
        os.killpg(os.getpgid(int(pid.read_text())), signal.SIGTERM)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
