"""The process of a cell, without torch: it starts at once, and the cell's label says what befalls it.

`python -m queued_worker JOB.json` is `python -m modicum.study.cell JOB.json` but for the run.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modicum.runs import Run, make_folder
from modicum.study import cell as cells
from modicum.study.cell import RESULT, Cell
from modicum.types import FolderError


def run(cell: Cell) -> None:
    """What befalls it the first time; later it has a result, which says where it ran."""
    make_folder(cell.folder)
    mark = cell.folder / "begun"
    first, what = not mark.exists(), cell.label.partition("-")[0]
    with mark.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if what == "fault":
        raise ZeroDivisionError("by the program")
    if what == "full" and first:
        raise FolderError("no space is left")
    if what == "killed" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "timed" and first:
        os.kill(os.getpid(), signal.SIGUSR2)
    if what in ("timed", "waits") and first:
        time.sleep(30)
    if what == "slow":
        time.sleep(1.5)
    seen = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ["OMP_NUM_THREADS"]}
    Run(cell.folder).write(RESULT, {"trained": None, **seen})


if __name__ == "__main__":
    torch: Any = SimpleNamespace(set_num_threads=lambda threads: None)
    sys.modules["torch"] = torch
    cells._run = run
    cells.main(Path(sys.argv[1]))
