"""Where cells run: a kind. A launcher runs cells and says when each has ended.

A cell that is there already is never run again. Another launcher (of a cluster, say) is a class
with `run` and its row in `LAUNCHERS`.
"""

import itertools
import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Literal

from modicum import disk
from modicum.child import ENDING, deaf
from modicum.config import Held, TrainConfig
from modicum.limits import Natural, Positive, check_limits
from modicum.machine import Interrupts
from modicum.runs import clear_folder, entries, make_folder
from modicum.spec import nearest
from modicum.study import design
from modicum.study.cell import BUSY, Cell, execute, work
from modicum.study.design import PlannedArm, Study
from modicum.types import FolderError, RunInterrupted, UserError

GOES_ON = "interrupted; the same command goes on from there"
POLL_SECONDS = 0.25
PRELOAD = ["modicum.training.loop", "modicum.evaluate", "modicum.display", "peft"]

Ended = Callable[[Cell], None]


@dataclass(frozen=True)
class Launcher(ABC):
    """One way to run cells."""

    jobs: Positive = 1  # cells at the same time
    threads: Natural = 0  # of each cell; 0: as here, or the cores shared out elsewhere

    def __post_init__(self) -> None:
        check_limits(self)

    @abstractmethod
    def run(self, cells: Sequence[Cell], ended: Ended) -> None:
        """Run all `cells` and call `ended` with each that has its result or its failure.

        Raises RunInterrupted after a signal, when the running cells have saved what they had,
        and FolderError when one cannot write its folder, as on a full disk.
        """


class Here(Launcher):
    """In this process, one after the other; shows each run's progress."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs > 1:
            raise UserError("the launcher here runs one at a time; several need processes")

    def run(self, cells: Sequence[Cell], ended: Ended) -> None:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            for cell in cells:
                execute(cell)
                ended(cell)
        except RunInterrupted as error:
            raise RunInterrupted(GOES_ON, error.number) from None
        finally:
            torch.set_num_threads(before)


class Processes(Launcher):
    """So many at a time on this machine, each in a fresh process.

    They are forked from a server that has the libraries loaded. One that a signal ends goes on once
    more when the others have ended; the second time it has failed, or where asked to end, all do.
    Of several GPUs each of the `jobs` places has one, which a run takes that names none.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs > (os.cpu_count() or 1):
            raise UserError(f"jobs must be at most {os.cpu_count()}, the number of cores")

    def run(self, cells: Sequence[Cell], ended: Ended) -> None:
        waiting, again = list(cells), list[Cell]()
        threads = self.threads or share_of_cores(self.jobs)
        running: dict[int, tuple[Cell, ForkServerProcess, int]] = {}
        free, cards = list(range(self.jobs)), gpus()
        # Read by the libraries when the server loads them; it must not wake CUDA for its children.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        resource_tracker.ensure_running()  # within `deaf` it would unblock what is to be blocked
        with Interrupts() as interrupts:
            while waiting or running:
                while waiting and len(running) < self.jobs and not interrupts.asked:
                    cell, place = waiting.pop(0), free.pop(0)
                    chooses = bool(cards) and cell.config.compute.device in ("auto", "cuda")
                    card = [cards[place % len(cards)]] if chooses else []
                    process = context.Process(target=work, args=(cell, threads, *card))
                    try:
                        with deaf():  # until it can end in order
                            process.start()
                    except (EOFError, ConnectionError):
                        raise FolderError(f"what starts the runs was killed; {GOES_ON}") from None
                    running[process.sentinel] = (cell, process, place)
                for sentinel in connection.wait(list(running), POLL_SECONDS):
                    cell, process, place = running.pop(sentinel)  # type: ignore[arg-type]
                    free = sorted([*free, place])
                    number = 0 if cell.done else _signal(process)
                    if number and cell not in again:
                        again.append(cell)
                        waiting.append(cell)
                    elif number in ENDING:
                        interrupts.number = number
                    elif busy := _close(cell, process, number):
                        _interrupt([of for _, of, _ in running.values()], signal.SIGINT)
                        raise FolderError(f"{cell.label}: {busy}; the same command goes on then")
                    else:
                        ended(cell)
                if interrupts.asked:
                    _interrupt([of for _, of, _ in running.values()], interrupts.number)
                    raise RunInterrupted(GOES_ON, interrupts.number)


LAUNCHERS: dict[str, type[Launcher]] = {"here": Here, "processes": Processes}


def named(name: str, jobs: int) -> Launcher:
    """The launcher called `name`; an unknown one is a UserError."""
    if name not in LAUNCHERS:
        raise UserError(f"there is no launcher {name!r}; {nearest(name, LAUNCHERS)}")
    return LAUNCHERS[name](jobs)


def gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else list(map(str, range(count))))[:count]


def share_of_cores(jobs: int) -> int:
    """The threads of each of `jobs` runs at the same time."""
    return max(1, (os.cpu_count() or 1) // jobs)


class StudyObserver:
    """Is told what happens during a study or a scan; this one does nothing with it."""

    def say(self, text: str) -> None:
        """Something for the reader: what begins, a cell that has ended, a verdict."""

    def ended(self, done: int, total: int, cell: Cell, seconds: float) -> None:
        """A cell has ended: `done` of `total`, `seconds` after the first of them began."""
        from modicum.display import clock

        left = clock(seconds / done * (total - done))
        self.say(f"{done}/{total}  {clock(seconds)}, left {left}  {cell.label}: {cell.summary}")


@dataclass(frozen=True)
class Bench:
    """A study, the folder of its cells, and how they are run."""

    study: Study
    folder: Path
    launcher: Launcher
    observer: StudyObserver
    retry_failed: bool = False
    split: Literal["tune", "test"] = "test"  # final runs are judged on it

    @property
    def arms(self) -> list[PlannedArm]:
        """All arms, the control first."""
        return design.arms(self.study)

    def config(
        self, arm: PlannedArm, seed: int, path: str, rate: float | None, share: float = 1.0
    ) -> TrainConfig:
        """The settings of a run of an arm in a `path` under the folder."""
        return design.config(self.study, arm, seed, self.folder / path, rate, share)

    def held(self, config: TrainConfig, split: str) -> TrainConfig:
        """The config with the evaluation of its split; what trains is not measured twice."""
        if split == self.split:
            return replace(config, evaluation=replace(config.evaluation, eval_split=self.split))
        held = Held(self.study.tuning.problems, self.study.tuning.samples, 0, "tune")
        records = replace(config.records, anatomy=False, checkpoint_every=0)
        return replace(config, evaluation=held, records=records)

    def cell(self, label: str, config: TrainConfig, split: str, keep: bool = False) -> Cell:
        """A run judged on a split, with the base's evaluation on it."""
        return Cell(label, self.held(config, split), str(self.folder / f"cells/base-{split}"), keep)

    def run(self, cells: Sequence[Cell], retry_failed: bool = False) -> None:
        """Run the cells that have neither a result nor, unless these are asked for, a failure."""
        for cell in cells:
            if cell.failure and (retry_failed or self.retry_failed):
                clear_folder(cell.folder)
        waiting = [cell for cell in cells if not cell.done and not cell.failure]
        number, began = itertools.count(1), time.perf_counter()

        def ended(cell: Cell) -> None:
            seconds = time.perf_counter() - began
            self.observer.ended(next(number), len(waiting), cell, seconds)

        self.launcher.run(waiting, ended)

    def evaluate(self, base: Cell) -> None:
        """Evaluate the untrained model; without that nothing can go on."""
        self.run([base], retry_failed=True)
        if base.failure:
            raise UserError(f"the base cannot be evaluated: {base.failure}")


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder of a study or a scan (`what`); UserError for another's, or one that is held."""
    if entries(folder) and not (folder / f"{what}.toml").is_file():
        raise UserError(f"{folder} is there and is no {what}; --out takes another folder")
    make_folder(folder)
    with disk.held(folder, f"running the {what} in"):
        yield


def _signal(process: ForkServerProcess) -> int:
    process.join()
    code = process.exitcode or 0
    if code == 255:  # its server was killed: it may live, and nobody hears of its end any more
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        time.sleep(POLL_SECONDS)  # then the server is gone, and the next process begins another
        return signal.SIGKILL
    return -code if code < 0 else max(0, code - 128)


def _close(cell: Cell, process: ForkServerProcess, number: int) -> str:
    """Write down how a signal or a fault ended a cell; why its folder cannot be written now."""
    code = process.exitcode or 0
    lines = cell.log.read_text(encoding="utf-8").splitlines() if cell.log.is_file() else []
    last = lines[-1] if lines else ""
    if code == BUSY:
        return last or f"{cell.folder} cannot be written now"
    if not cell.done and not cell.failure:
        how = f"by signal {number}, twice" if number else f"with exit code {code}"
        memory = "; signal 9 is often the system, out of memory" if number == signal.SIGKILL else ""
        said = f"; its log ends: {last}" if last and code == 1 else ""
        cell.fail(f"the process ended {how}{memory}{said}")
    return ""


def _interrupt(processes: Sequence[ForkServerProcess], number: int) -> None:
    """Ask each to stop after its step, once, and wait; a second signal ends them at once."""
    for pid in [process.pid for process in processes if process.pid and process.is_alive()]:
        os.kill(pid, number)
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
