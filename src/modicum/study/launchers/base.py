"""What a launcher is: settings, and what they begin, which runs cells and says how each ended."""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from modicum.limits import Natural, Positive
from modicum.spec import Spec
from modicum.study.cell import Cell

GOES_ON = "interrupted; the same command goes on from there"
LOST = -signal.SIGKILL  # the exit code of what nobody saw end


@dataclass(eq=False)
class Handle:
    """A cell that was submitted: what its launcher knows it by, and where it runs."""

    cell: Cell
    job: Any
    place: Any = None


class Runner(ABC):
    """What runs cells while a study goes."""

    @abstractmethod
    def submit(self, cell: Cell) -> Handle:
        """Run a cell; may return before it has begun. UserError where that cannot be."""

    @abstractmethod
    def ended(self, handles: Sequence[Handle], timeout: float) -> list[Handle]:
        """Those that have ended; waits for one, `timeout` seconds at most."""

    @abstractmethod
    def why(self, handle: Handle) -> tuple[int, str]:
        """The exit code of one that has ended, negative or above 128 for a signal, and words."""

    @abstractmethod
    def cancel(self, handles: Sequence[Handle], number: int) -> None:
        """Let them end in order, as by signal `number`, and wait; Ctrl-C then ends them at once."""


class Launcher(Spec, ABC):
    """One way to run cells; its settings."""

    jobs: Positive = 1  # cells at the same time
    cpus: Natural = 0  # cores of each; 0: those of this machine, shared

    preempts: ClassVar[bool] = False  # may end a cell for others, which is no fault of the cell

    @property
    def threads(self) -> int:
        """Of each cell, where the study says nothing."""
        return self.cpus or max(1, (os.cpu_count() or 1) // self.jobs)

    @abstractmethod
    def begin(self, folder: Path, threads: int) -> AbstractContextManager[Runner]:
        """What runs the cells of a study in `folder`, with so many threads each; 0: its own choice."""
