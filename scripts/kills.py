"""Runs that are killed, and go on, beside the same runs uncut: nothing may differ.

    python scripts/kills.py                    100 kills (about 15 minutes)
    python scripts/kills.py --kills 10 --out runs/ten
    python scripts/kills.py --only lora dora   these updates

Every kill has a run on the tiny base, an update, and a moment, all drawn from the seed:

    time        anywhere in the run
    checkpoint  while a checkpoint is written
    end         when the last evaluation, the anatomy or the result appears
    others      anywhere, while two others try to resume and to overwrite it: both are refused
    full        not killed: no file may grow beyond a size, as on a full disk; one line, code 2

Then it is resumed, perhaps killed once more, until it is finished, and compared with the uncut
run: metrics without times and memory, samples, evaluations and their completions, decisions,
result, anatomy, the last checkpoint bit for bit, and the names of all files. Children are forked
from a process that has the libraries loaded. What is done is kept in OUT/kills.json, so the
same command goes on. Exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported: a child of a process with threads would wait for them.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

CASES: dict[str, tuple[str, ...]] = {
    "full": ("--update", "full", "--objective", "grpo(kl=0.04)"),
    "last(1)": ("--update", "last(1)"),
    "lora": ("--update", "lora(rank=4)", "--objective", "grpo(kl=0.04)"),
    "dora": ("--update", "dora(rank=4)"),
    "vera": ("--update", "vera(rank=16)"),
    "sparse": ("--update", "sparse(keep=0.05)"),
    "lisa": ("--update", "lisa(layers=1, every=1)"),
    "badam": ("--update", "badam(every=1)", "--objective", "grpo(kl=0.04)"),
    "autofreeze": ("--update", "autofreeze(intervals=4)"),
    "slimfit": ("--update", "slimfit(rate=0.5)"),
    "adalora": ("--update", "adalora(rank=2, init_rank=4, warmup=1, tail=2)"),
    "galore": ("--update", "galore(rank=4) @ last(2)"),
    "union": ("--update", "layers(1, 3) + parts(norm)", "--updates-per-rollout", "2"),
    "linear": ("--update", "middle(2)", "--schedule", "linear", "--warmup-steps", "2"),
    "full, bf16": ("--update", "full", "--dtype", "bf16"),
    "lora, bf16": ("--update", "lora(rank=4)", "--dtype", "bf16", "--objective", "grpo(kl=0.04)"),
    "badam, bf16": ("--update", "badam(every=1)", "--dtype", "bf16"),
}
COMMON = (
    *("--task", "arithmetic(terms=3,digits=1)", "--reward", "accuracy + 0.2*format"),
    *("--steps", "8", "--prompts-per-step", "3", "--group-size", "4", "--max-tokens", "16"),
    *("--eval-problems", "4", "--eval-samples", "2", "--eval-every", "3"),
    *("--samples-every", "3", "--device", "cpu", "--agreement-every", "4"),
)
MOMENTS = ("time", "checkpoint", "end", "others", "full")
ENDS = ("completions-trained.jsonl", "anatomy.json", "result.json")
MEASURED = ("seconds", "peak_memory_bytes", "start_memory_bytes")
AGAIN = 0.3  # how often a run is killed once more while it goes on
LIMIT = 600.0  # seconds for one child


def start(args: list[str], log: Path, largest: int = 0) -> int:
    """A child that runs `modicum` with these arguments; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if largest:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
        sys.argv = ["modicum", *args]
        from modicum.cli import main

        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()  # a fault of the program
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(child: int, until: Callable[[], bool] = lambda: False) -> int:
    """Kill a child when `until` says so, or after LIMIT; its exit code, -9 of a killed one."""
    end = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until() or time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.0005)


def command(case: str, folder: Path, every: int, *more: str) -> list[str]:
    """The arguments that begin a run, or go on with it when it has begun."""
    if (folder / "config.toml").exists() and not more:
        return ["train", "--resume", "--out", str(folder)]
    options = (*COMMON, *CASES[case], "--checkpoint-every", str(every), "--out", str(folder))
    return ["train", *options, *more]


def left(folder: Path) -> dict[str, Any]:
    """What a run has left, without what is measured."""
    from modicum import runs

    found: dict[str, Any] = {"files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))}
    for path in sorted(folder.glob("*.jsonl")):
        rows = runs.read_lines(path)
        measured = ("time/", "memory/")
        found[path.name] = [
            {k: v for k, v in row.items() if not k.startswith(measured)} for row in rows
        ]
    for name in ("result.json", "anatomy.json"):
        rows = runs.read_object(folder / name)
        found[name] = {k: v for k, v in rows.items() if k not in MEASURED}
    _, state = runs.read_checkpoint(runs.checkpoints(folder)[-1])
    found["checkpoint"] = {k: v for k, v in state.items() if k != "trained_seconds"}
    return found


def uncut(case: str, every: int, out: Path) -> tuple[Path, float]:
    """The run that nobody kills, made once, and the seconds that it takes."""
    folder = out / "uncut" / f"{case}, every {every}".replace(" ", "-")
    clock = folder.with_suffix(".seconds")
    if not clock.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        began, log = time.monotonic(), folder.with_suffix(".log")
        code = wait(start(command(case, folder, every), log))
        if code:
            sys.exit(f"{case}: the uncut run ended with exit code {code}: {last(log)}")
        clock.write_text(str(time.monotonic() - began))
    return folder, float(clock.read_text())


def last(log: Path) -> str:
    """The last line of a log."""
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else ""


def moment_of(kind: str, folder: Path, seconds: float, draw: random.Random) -> Callable[[], bool]:
    """What says that it is time to kill."""
    began, after = time.monotonic(), draw.uniform(0.05, 1.0) * seconds
    if kind == "others":
        after /= 3  # much of its time is over
    if kind in ("time", "others"):
        return lambda: time.monotonic() - began > after
    seen: set[str] = set()
    due: list[float] = []
    wanted, delay, name = draw.randint(1, 4), draw.choice((0, 0, 0.002, 0.01)), draw.choice(ENDS)

    def now() -> bool:
        if kind == "checkpoint":
            with contextlib.suppress(OSError):
                seen.update(e.name for e in os.scandir(folder / "checkpoints") if e.name[0] == ".")
            there = len(seen) >= wanted
        else:
            there = (folder / name).exists()
        if there and not due:
            due.append(time.monotonic() + delay)
        return bool(due) and time.monotonic() >= due[0]

    return now


def intrude(case: str, folder: Path, every: int, log: Path) -> list[str]:
    """What is wrong with how two others are refused a run that is going on."""
    wrong = []
    for how in ("--resume", "--overwrite"):
        mine = log.with_suffix(f".{how[2:]}.log")
        mine.unlink(missing_ok=True)
        code = wait(start(command(case, folder, every, how), mine))
        if code != 2 or "another process is writing" not in last(mine):
            wrong.append(f"{how} was not refused: {code}, {last(mine)}")
    return wrong


def one(number: int, case: str, kind: str, out: Path, seed: int) -> dict[str, Any]:
    """A run that is killed and goes on until it is finished; what was wrong with it."""
    draw = random.Random(f"{seed}/{number}/{case}/{kind}")
    every = draw.choice((1, 2))
    whole, seconds = uncut(case, every, out)
    folder, log = out / "killed" / str(number), out / "killed" / f"{number}.log"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    kills, wrong = 0, list[str]()
    if kind == "full":
        largest = int(10 ** draw.uniform(2, 6.5))
        code = wait(start(command(case, folder, every), log, largest))
        line = last(log)
        if code and (code != 2 or "cannot be written: File too large" not in line):
            wrong.append(f"at {largest} bytes: exit code {code}, {line}")
        kills += code == 2
    else:
        child = start(command(case, folder, every), log)
        if kind == "others":
            while not (folder / "config.toml").exists():  # it has the folder by then
                time.sleep(0.001)
            os.kill(child, signal.SIGSTOP)  # it lives, and waits for the others
            wrong += intrude(case, folder, every, log)
            os.kill(child, signal.SIGCONT)
        kills += wait(child, moment_of(kind, folder, seconds, draw)) == -signal.SIGKILL
    for _ in range(5):
        if (folder / "result.json").exists():
            break
        child = start(command(case, folder, every), log)
        again = draw.random() < AGAIN
        until = moment_of(draw.choice(MOMENTS[:3]), folder, seconds, draw)
        code = wait(child, until) if again else wait(child)
        kills += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            wrong.append(f"resumed: exit code {code}, {last(log)}")
            break
    if not wrong:
        with contextlib.suppress(FileNotFoundError):
            (folder / ".lock").unlink()  # of one that was killed after its result
        before, after = left(whole), left(folder)
        wrong += [
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        ]
    if not wrong:
        shutil.rmtree(folder)
    return {"number": number, "case": case, "moment": kind, "kills": kills, "wrong": wrong}


def main() -> None:
    """Do what is missing, print a table, and end with 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    found = parser.parse_args()
    # What the children need, loaded once.
    import peft  # noqa: F401

    import modicum.commands.train
    import modicum.display
    import modicum.training.loop  # noqa: F401

    found.out.mkdir(parents=True, exist_ok=True)
    kept = found.out / "kills.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for number in range(found.kills):
        case, kind = found.only[number % len(found.only)], MOMENTS[number % len(MOMENTS)]
        key = f"{found.seed} {number} {case} {kind}"
        if key not in rows:
            rows[key] = one(number, case, kind, found.out, found.seed)
            kept.write_text(json.dumps(rows, indent=1))
        row = rows[key]
        print(
            f"{number:>4}  {case:<12}  {kind:<11}  {row['kills']} killed  "
            + ("; ".join(row["wrong"]) or "equal"),
            flush=True,
        )
    bad = [row for row in rows.values() if row["wrong"]]
    killed = sum(row["kills"] for row in rows.values())
    print(f"{len(rows)} runs, {killed} ends before their time, {len(bad)} differ")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
