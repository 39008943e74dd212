"""One run of a study or a scan, here or in a process of its own.

A cell is a run folder. It ends with `result.json`, or with `failed.json` that says why not;
NAME.log beside it has what its process would have printed, and NAME.lock names the process that
runs it, of whichever machine. The base is evaluated once for each split, in a cell of its own,
since all arms start from it. `python -m modicum.study.cell JOB.json` runs one that was written down."""

import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
import tomllib
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from modicum import disk
from modicum.child import ENDING
from modicum.config import TrainConfig, from_mapping, to_toml
from modicum.machine import Interrupts, Stopped
from modicum.parts import ENVIRONMENT, base_of
from modicum.runs import FAILED, Run, checkpoints, make_folder, read_object
from modicum.types import FolderError, Frozen, RunInterrupted, UserError

BASE = "evaluation.json"
RESULT = "result.json"
BUSY, TAKEN = 75, 76  # exit codes: the folder cannot be written now; another process runs the cell
SECONDS = "seconds.json"
WATCH_SECONDS = 1.0


class Cell(Frozen):
    """One run: what it is for, its settings, and the folder with the base's evaluation."""

    label: str
    config: TrainConfig
    base: str = ""  # the cell that evaluated the base on the same problems; empty: this one does
    keep: bool = False  # keep its checkpoints

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return Path(self.config.out)

    @property
    def done(self) -> bool:
        """Whether it has its result."""
        return (self.folder / (RESULT if self.base else BASE)).is_file()

    @property
    def failure(self) -> str:
        """Why it failed, or nothing."""
        return failure(self.folder)

    @property
    def summary(self) -> str:
        """What came of it, in a few words."""
        if self.failure:
            return f"failed: {self.failure}"
        if not self.done:
            return "stopped"
        found = read_object(self.folder / (RESULT if self.base else BASE))
        found = found["trained"] if self.base else found
        return f"{found['accuracy']:.1%}" if found else "done"

    @property
    def log(self) -> Path:
        """What it prints goes there."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def progress(self) -> str:
        """How far it is: its last checkpoint, or nothing."""
        return "".join(path.name for path in checkpoints(self.folder)[-1:])

    @property
    def taken(self) -> str:
        """Which process runs it, or nothing."""
        try:
            disk.check_free(*self._lock)
        except disk.FolderTaken as error:
            return str(error)
        return ""

    @property
    def _lock(self) -> tuple[Path, str, str]:
        name = self.folder.name
        return self.folder.parent, f"running {name} in", f"{name}.lock"

    def alone(self) -> AbstractContextManager[None]:
        """A context in which no other process runs it; FolderTaken where one does."""
        make_folder(self.folder.parent)
        return disk.held(*self._lock)

    def free(self, pid: int, host: str) -> None:
        """Remove what a process, which is known to have ended, had locked."""
        for path in (self.folder / disk.LOCK, self.folder.with_name(f"{self.folder.name}.lock")):
            found = read_object(path, optional=True)
            if (found.get("pid"), found.get("host")) == (pid, host):
                path.unlink()

    def to_json(self, threads: int) -> dict[str, Any]:
        """The cell as a job of another process, as `main` reads it."""
        told = {"label": self.label, "base": self.base, "keep": self.keep, "threads": threads}
        return told | {"folder": str(Path.cwd()), "path": sys.path, "config": to_toml(self.config)}

    def fail(self, why: str) -> None:
        """Write down that it failed."""
        make_folder(self.folder)
        Run(self.folder).write(FAILED, {"error": why})


def failure(folder: Path) -> str:
    """Why the cell in a folder failed, or nothing."""
    path = folder / FAILED
    return str(read_object(path)["error"]) if path.is_file() else ""


def work(cell: Cell, threads: int, gpu: str = "") -> None:
    """Run the cell in this process, which a study has forked, on this GPU if there is one."""
    if gpu:  # before torch wakes CUDA
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    parent = parent_process()

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    if parent is not None:  # end when the study's process does, even when that was killed
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
    _work(cell, threads)


def main(job: Path) -> None:
    """Run the cell of a job, a file, in this process, and write how it ended to NAME.end beside it.

    It ends in order when the file is gone, and at once when its parent is."""
    if not job.is_file():  # taken back before this process began
        return
    given, parent = read_object(job), os.getppid()
    mine = {"pid": os.getpid(), "host": platform.node()}  # whose locks go if this is killed
    disk.write_whole(job, json.dumps(given | mine))
    os.chdir(given["folder"])
    sys.path[:] = given["path"]
    os.environ["OMP_NUM_THREADS"] = str(given["threads"])  # before torch reads it
    config = from_mapping(TrainConfig, tomllib.loads(given["config"]), str(job))
    cell = Cell(given["label"], config, given["base"], given["keep"])

    def watch() -> None:
        while job.is_file():
            time.sleep(WATCH_SECONDS)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until they can be heard
    for number in (signal.SIGUSR1, signal.SIGUSR2):  # with which SLURM says that time is up
        signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    threading.Thread(target=watch, daemon=True).start()
    code: Any = 1
    try:
        _work(cell, given["threads"])
    except SystemExit as ended:
        code = ended.code or 0
        raise
    finally:
        disk.write_whole(job.with_suffix(".end"), json.dumps({"code": code}))


def _work(cell: Cell, threads: int) -> None:
    """Run the cell: exit code 0 when it is done or refused.

    It is 128 and the signal's number when one ended it, TAKEN when another process runs it, and
    BUSY when its folder cannot be written now. A fault of the program leaves its traceback in the
    log and exit code 1."""
    # Ctrl-C in a terminal goes to a whole group: what began this one passes it on, once.
    os.setpgrp()
    try:
        with Interrupts(at_once=True):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            import torch

            torch.set_num_threads(threads)
            make_folder(cell.folder.parent)
            sys.stdout = sys.stderr = cell.log.open("a", encoding="utf-8", buffering=1)
            sys.exit(execute(cell))
    except (RunInterrupted, Stopped) as error:
        sys.exit(128 + error.number)
    except (FolderError, *disk.errors()) as error:
        if not isinstance(error, FolderError) and disk.number(error) not in disk.FULL:
            raise
        with suppress(OSError):  # the log may be on the full disk
            print(error, flush=True)
        sys.exit(BUSY)


def execute(cell: Cell) -> int:
    """Run the cell in this process, unless another has done so; what it is refused or stops itself
    for is its failure. 0, or TAKEN while another process runs it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(cell.alone())
        except disk.FolderTaken:
            return TAKEN
        if not cell.done and not cell.failure:
            _run(cell)
    return 0


def _run(cell: Cell) -> None:
    from modicum.display import Display
    from modicum.evaluate import Evaluation
    from modicum.training import origin
    from modicum.training.loop import measured, train

    # The evaluations of the base that it must agree with: of its model, in its dtype.
    wanted = cell.config.model, cell.config.compute.dtype
    bases = sorted(Path(cell.base or cell.folder).parent.glob("base-*"))
    past = [p for p in bases if (base_of(p).get("model"), base_of(p).get("dtype")) == wanted]
    with Display() as display:
        try:
            if cell.base:
                known = Evaluation.from_json(read_object(Path(cell.base) / BASE))
                begun = (cell.folder / "config.toml").is_file()
                train(cell.config, display, resume=begun, base=known, past=past)
                if not cell.keep:
                    shutil.rmtree(cell.folder / "checkpoints", ignore_errors=True)
                return
            session = origin.prepare_like(cell.config, None, past)
            make_folder(cell.folder)
            run, began = Run(cell.folder), time.perf_counter()
            found = measured(session, run, display, "base")
            run.write(SECONDS, {"seconds": time.perf_counter() - began})
            run.write(ENVIRONMENT, origin.record(session, cell.folder))
            run.write(BASE, asdict(found))
        except (RunInterrupted, FolderError):
            raise  # nothing is wrong with the run: the same command goes on with it
        except UserError as error:
            cell.fail(str(error))


if __name__ == "__main__":
    from modicum.study import cell as itself  # the package has loaded it before, by that name

    itself.main(Path(sys.argv[1]))
