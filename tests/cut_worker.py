"""A worker of a study that a signal ends the first time, without torch: it starts at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any

from modicum.runs import Run, make_folder
from modicum.study import cell as cells
from modicum.study.cell import RESULT, Cell


def work(cell: Cell, threads: int) -> None:
    """What `cell.work` does, but for the run: the label says what is sent to whom, and when."""
    at, whom, name = cell.label.split()
    number = getattr(signal, name)

    def send() -> None:
        marks = list(cell.folder.parent.glob(f"{cell.folder.name}-*"))
        cell.folder.with_name(f"{cell.folder.name}-{len(marks)}").touch()
        if not marks:
            os.kill(os.getppid() if whom == "server" else os.getpid(), number)
            time.sleep(0.5)  # for those who then believe that this process has ended

    def execute(cell: Cell) -> None:
        if at == "running":
            send()
        make_folder(cell.folder)
        Run(cell.folder).write(RESULT, {"trained": None})

    torch: Any = SimpleNamespace(set_num_threads=lambda threads: None)
    sys.modules["torch"] = torch
    cells.execute = execute
    if at == "starting":
        send()
    cells.work(cell, threads)


def seeing(cell: Cell, threads: int, gpu: str = "") -> None:
    """What `cell.work` does, but for the run: its result is the GPU that it may see."""

    def execute(cell: Cell) -> None:
        time.sleep(0.3)  # for the other place to be taken
        make_folder(cell.folder)
        Run(cell.folder).write(RESULT, {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")})

    torch: Any = SimpleNamespace(set_num_threads=lambda threads: None)
    sys.modules["torch"] = torch
    cells.execute = execute
    cells.work(cell, threads, gpu)
