"""Run cells, so many at a time, each in a fresh process; go on where a study was.

The processes are forked from a server that has the libraries loaded, so a cell starts in a
moment and still shares no state with another. Ctrl-C lets the running cells write a
checkpoint first; the same command goes on from there.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from modicum.machine import Interrupts
from modicum.runs import make_folder
from modicum.study.cell import Cell, work
from modicum.types import RunInterrupted, UserError

INTERRUPTED = 130
POLL_SECONDS = 1.0
PRELOAD = ["modicum.training.loop", "modicum.evaluate", "modicum.display", "peft"]

Told = Callable[[int, int, Cell, float], None]
"""Called with (done, all, cell, seconds since the first began) when a cell has ended."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder: a second process that wants it gets a UserError."""
    make_folder(folder)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is running the study in {folder}") from None
        yield


def run_all(
    cells: Sequence[Cell], jobs: int, threads: int, told: Told, retry_failed: bool = False
) -> None:
    """Run the cells that have neither a result nor a failure; `retry_failed` these too.

    Raises RunInterrupted after Ctrl-C, when the running cells have saved what they had.
    """
    if retry_failed:
        for cell in cells:
            if cell.failure:
                shutil.rmtree(cell.folder)
    waiting = [cell for cell in cells if not cell.done and not cell.failure]
    total, began = len(waiting), time.perf_counter()
    running: dict[int, tuple[Cell, ForkServerProcess]] = {}
    context = _context(threads)
    with Interrupts() as interrupts:
        while waiting or running:
            while waiting and len(running) < jobs and not interrupts.asked:
                cell = waiting.pop(0)
                process = context.Process(target=work, args=(cell, threads))
                process.start()
                running[process.sentinel] = (cell, process)
            for sentinel in connection.wait(list(running), POLL_SECONDS):
                cell, process = running.pop(sentinel)  # type: ignore[arg-type]
                _close(cell, process)
                told(total - len(waiting) - len(running), total, cell, time.perf_counter() - began)
            if interrupts.asked:
                _interrupt([process for _, process in running.values()])
                raise RunInterrupted("interrupted; the same command goes on from there")


def _context(threads: int) -> multiprocessing.context.ForkServerContext:
    # Read by the libraries when the server loads them.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _close(cell: Cell, process: ForkServerProcess) -> None:
    """Write down what a cell could not: that it was killed."""
    process.join()
    code = process.exitcode
    if not cell.done and not cell.failure and code != INTERRUPTED:
        how = f"by signal {-code}" if code and code < 0 else f"with exit code {code}"
        memory = "; signal 9 is often the system, out of memory" if code == -signal.SIGKILL else ""
        lines = cell.log.read_text(encoding="utf-8").splitlines() if cell.log.is_file() else []
        last = f"; its log ends: {lines[-1]}" if lines and code == 1 else ""
        cell.fail(f"the process ended {how}{memory}{last}")


def _interrupt(processes: Sequence[ForkServerProcess]) -> None:
    """Ask each to stop after its step, once, and wait; a second Ctrl-C ends them at once."""
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
