"""The cells of a study, run by a launcher: which are next, and what comes of those that end.

A cell that is there already is never run again, and one that another process runs, of whichever
machine, is waited for."""

import itertools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from modicum import disk
from modicum.child import ENDING
from modicum.config import Held, TrainConfig
from modicum.machine import Interrupts
from modicum.runs import clear_folder, entries, make_folder
from modicum.study import design
from modicum.study.cell import BUSY, TAKEN, Cell
from modicum.study.design import PlannedArm, Study
from modicum.study.launchers import Launcher
from modicum.study.launchers.base import GOES_ON, Handle, Runner
from modicum.types import FolderError, Frozen, RunInterrupted, UserError

POLL_SECONDS, LOOK_SECONDS = 0.25, 2.0  # between looks at our own cells, and at those of others
WRITING_SECONDS = 60.0  # for which another process may write what is of the whole study


class StudyObserver:
    """Is told what happens during a study or a scan; this one does nothing with it."""

    def say(self, text: str) -> None:
        """Something for the reader: what begins, a cell that has ended, a verdict."""

    def ended(self, done: int, total: int, cell: Cell, seconds: float) -> None:
        """A cell has ended: `done` of `total`, `seconds` after the first of them began."""
        from modicum.display import clock

        left = clock(seconds / done * (total - done))
        self.say(f"{done}/{total}  {clock(seconds)}, left {left}  {cell.label}: {cell.summary}")


class Bench(Frozen):
    """A study, the folder of its cells, and how they are run."""

    study: Study
    folder: Path
    launcher: Launcher
    observer: StudyObserver
    retry_failed: bool = False
    split: Literal["tune", "test"] = "test"  # final runs are judged on it
    threads: int = 0  # of each cell; 0: the launcher's own choice

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
        """Run the cells that have neither a result nor, unless these are asked for, a failure.

        Raises RunInterrupted after a signal, when the running cells have saved what they had,
        and FolderError when one cannot write its folder, as on a full disk."""
        for cell in cells:
            if cell.failure and (retry_failed or self.retry_failed):
                with suppress(disk.FolderTaken), cell.alone():
                    if cell.failure:  # and no other process has begun it anew
                        clear_folder(cell.folder)
        waiting = [cell for cell in cells if not cell.done and not cell.failure]
        number, began = itertools.count(1), time.perf_counter()

        def ended(cell: Cell) -> None:
            self.observer.ended(next(number), len(waiting), cell, time.perf_counter() - began)

        if waiting:
            Queue(self, waiting, ended).run()

    def writing(self) -> AbstractContextManager[None]:
        """A context in which no other process writes what is of the whole study."""
        return disk.held(self.folder, "writing the study in", wait=WRITING_SECONDS)

    def evaluate(self, base: Cell) -> None:
        """Evaluate the untrained model; without that nothing can go on."""
        self.run([base], retry_failed=True)
        if base.failure:
            raise UserError(f"the base cannot be evaluated: {base.failure}")


class Queue:
    """Cells on their way: they wait, for a place or for another process, run, and end."""

    def __init__(self, bench: Bench, cells: Sequence[Cell], ended: Callable[[Cell], None]) -> None:
        self.bench, self.launcher, self.ended = bench, bench.launcher, ended
        self.waiting, self.running = list(cells), list[Handle]()
        self.again = set[tuple[Path, str]]()  # which ended before their time, and how far they were
        self.look = 0.0  # when those that other processes run are looked at again

    def run(self) -> None:
        """Run all; errors as of `Bench.run`."""
        begun = self.launcher.begin(self.bench.folder, self.bench.threads)
        with begun as runner, Interrupts() as interrupts:
            try:
                while self.waiting or self.running:
                    if not interrupts.asked:
                        self._submit(runner)
                    for handle in runner.ended(self.running, POLL_SECONDS):
                        self.running.remove(handle)
                        number = self._close(handle.cell, *runner.why(handle))
                        interrupts.number = number or interrupts.number
                    if interrupts.asked:
                        raise RunInterrupted(GOES_ON, interrupts.number)
            except UserError as error:
                runner.cancel(self.running, getattr(error, "number", signal.SIGINT))
                raise

    def _submit(self, runner: Runner) -> None:
        while self.waiting and len(self.running) < self.launcher.jobs:
            if time.monotonic() < self.look:
                return
            if (cell := next((cell for cell in self.waiting if not cell.taken), None)) is None:
                if not self.look:
                    self.bench.observer.say(f"waiting: {self.waiting[0].taken}")
                self.look = time.monotonic() + LOOK_SECONDS
                return
            self.waiting.remove(cell)
            if cell.done or cell.failure:  # by another process, meanwhile
                self.ended(cell)
            else:
                self.running.append(runner.submit(cell))

    def _close(self, cell: Cell, code: int, said: str) -> int:
        """Go on with what comes of a cell that has ended; the signal by which all are asked to end."""
        preempts, number = self.launcher.preempts, -code if code < 0 else max(0, code - 128)
        mark = cell.folder, cell.progress if preempts else ""
        if cell.done or cell.failure:
            self.ended(cell)
        elif code == TAKEN or (number and mark not in self.again):
            self.again |= {mark} if number else set()
            self.waiting.append(cell)
        elif number in ENDING and not preempts:
            return number
        else:
            lines = cell.log.read_text(encoding="utf-8").splitlines() if cell.log.is_file() else []
            last = lines[-1] if lines else ""
            if code == BUSY:
                why = last or f"{cell.folder} cannot be written now"
                raise FolderError(f"{cell.label}: {why}; the same command goes on then")
            how = said or (f"by signal {number}, twice" if number else f"with exit code {code}")
            if number == signal.SIGKILL and not said:
                how += "; signal 9 is often the system, out of memory"
            how += f"; its log ends: {last}" if last and code == 1 else ""
            cell.fail(f"the process ended {how}")
            self.ended(cell)
        return 0


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold what is of a whole study or scan (`what`); waits while another process does. UserError for
    the folder of something else."""
    if entries(folder) and not (folder / f"{what}.toml").is_file():
        raise UserError(f"{folder} is there and is no {what}; --out takes another folder")
    make_folder(folder)
    with disk.held(folder, f"writing the {what} in", wait=WRITING_SECONDS):
        yield


def require_idle(folder: Path) -> None:
    """FolderTaken where a process runs a cell of the study in a folder."""
    for lock in (folder / "cells").rglob("*.lock"):
        disk.check_free(lock.parent, "running a cell in", lock.name)
