"""Cells on this machine: in this process, or several at a time, each in one of its own."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import ClassVar

from modicum.child import deaf
from modicum.limits import Positive
from modicum.machine import Interrupts, Stopped
from modicum.study.cell import Cell, execute, work
from modicum.study.launchers.base import GOES_ON, LOST, Handle, Launcher, Runner
from modicum.types import FolderError, RunInterrupted, UserError

PRELOAD = ["modicum.training.loop", "modicum.evaluate", "modicum.display", "peft"]


class Here(Launcher, Runner):
    """In this process, one after the other; shows each run's progress."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs > 1:
            raise UserError("the launcher here runs one at a time; local runs several")

    @contextmanager
    def begin(self, folder: Path, threads: int) -> Iterator[Runner]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            yield self
        finally:
            torch.set_num_threads(before)

    def submit(self, cell: Cell) -> Handle:
        try:
            with Interrupts(at_once=True):
                return Handle(cell, execute(cell))
        except (RunInterrupted, Stopped) as error:
            raise RunInterrupted(GOES_ON, error.number) from None

    def ended(self, handles: Sequence[Handle], timeout: float) -> list[Handle]:
        time.sleep(0 if handles else timeout)
        return list(handles)

    def why(self, handle: Handle) -> tuple[int, str]:
        return handle.job, ""

    def cancel(self, handles: Sequence[Handle], number: int) -> None:
        pass


class LocalProcesses(Launcher):
    """So many at a time on this machine, each in a fresh process.

    They are forked from a server that has the libraries loaded. A GPU has `per_gpu` places, and a
    run that names none has the GPU of its place alone; `gpus` says which ('0,3'), else all are used
    that CUDA_VISIBLE_DEVICES shows."""

    name: ClassVar[str] = "local"

    gpus: str = "auto"
    per_gpu: Positive = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs > (os.cpu_count() or 1):
            raise UserError(f"jobs must be at most {os.cpu_count()}, the number of cores")

    @contextmanager
    def begin(self, folder: Path, threads: int) -> Iterator[Runner]:
        threads = threads or self.threads
        cards = visible_gpus() if self.gpus == "auto" else self.gpus.replace(" ", "").split(",")
        # Read by the libraries when the server loads them; it must not wake CUDA for its children.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        resource_tracker.ensure_running()  # within `deaf` it would unblock what is to be blocked
        yield Forked(context, threads, cards * self.per_gpu, list(range(self.jobs)))


@dataclass(eq=False)
class Forked(Runner):
    """Processes in places, each of which may have a GPU."""

    context: ForkServerContext
    threads: int
    cards: list[str]
    free: list[int]

    def submit(self, cell: Cell) -> Handle:
        place = self.free[0]
        chooses = bool(self.cards) and cell.config.compute.device in ("auto", "cuda")
        if chooses and place >= len(self.cards):
            many = f"the GPUs have places for {len(self.cards)} runs at a time, not {place + 1}"
            raise UserError(f"{many}; local(jobs=N, per_gpu=N) puts several on one")
        card = [self.cards[place]] if chooses else []
        process = self.context.Process(target=work, args=(cell, self.threads, *card))
        try:
            with deaf():  # until it can end in order
                process.start()
        except (EOFError, ConnectionError):
            raise FolderError(f"what starts the runs was killed; {GOES_ON}") from None
        self.free.remove(place)
        return Handle(cell, process, place)

    def ended(self, handles: Sequence[Handle], timeout: float) -> list[Handle]:
        ready = connection.wait([handle.job.sentinel for handle in handles], timeout)
        found = [handle for handle in handles if handle.job.sentinel in ready]
        self.free = sorted([*self.free, *(handle.place for handle in found)])
        return found

    def why(self, handle: Handle) -> tuple[int, str]:
        process: ForkServerProcess = handle.job
        process.join()
        if process.exitcode == 255:
            # Its server was killed: it may live, and nobody hears of its end.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
            time.sleep(0.25)  # then the server is gone, and the next process begins another
            return LOST, ""
        return process.exitcode or 0, ""

    def cancel(self, handles: Sequence[Handle], number: int) -> None:
        processes: list[ForkServerProcess] = [handle.job for handle in handles]
        for pid in [process.pid for process in processes if process.pid and process.is_alive()]:
            os.kill(pid, number)
        try:
            for process in processes:
                process.join()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()


def visible_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else list(map(str, range(count))))[:count]
