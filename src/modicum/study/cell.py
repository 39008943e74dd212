"""One run of a study or a scan, here or in a process of its own.

A cell is a run folder. It ends with `result.json`, or with `failed.json` that says why not;
NAME.log beside it has what its process would have printed. The base is evaluated once for each
split, in a cell of its own, since all arms start from it.
"""

import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import connection, parent_process
from pathlib import Path

from modicum import disk
from modicum.child import ENDING
from modicum.config import TrainConfig
from modicum.machine import Interrupts, Stopped
from modicum.parts import ENVIRONMENT, base_of
from modicum.runs import FAILED, Run, make_folder, read_object
from modicum.types import FolderError, RunInterrupted, UserError

BASE = "evaluation.json"
RESULT = "result.json"
BUSY = 75  # exit code of a cell whose folder cannot be written now
SECONDS = "seconds.json"


@dataclass(frozen=True)
class Cell:
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

    def fail(self, why: str) -> None:
        """Write down that it failed."""
        make_folder(self.folder)
        Run(self.folder).write(FAILED, {"error": why})


def failure(folder: Path) -> str:
    """Why the cell in a folder failed, or nothing."""
    path = folder / FAILED
    return str(read_object(path)["error"]) if path.is_file() else ""


def work(cell: Cell, threads: int, gpu: str = "") -> None:
    """Run the cell in this process, on this GPU if there is one: exit code 0 when it is done or refused.

    It is 128 and the signal's number when one ended it, and BUSY when its folder cannot be
    written now. A fault of the program leaves its traceback in the log and exit code 1.
    """
    if gpu:  # before torch wakes CUDA
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    # Ctrl-C in a terminal goes to a whole group: the parent passes it on, once.
    os.setpgrp()
    parent = parent_process()

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    if parent is not None:  # end when the study's process does, even when that was killed
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
    try:
        with Interrupts(at_once=True):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            import torch

            torch.set_num_threads(threads)
            make_folder(cell.folder.parent)
            sys.stdout = sys.stderr = cell.log.open("a", encoding="utf-8", buffering=1)
            execute(cell)
    except (RunInterrupted, Stopped) as error:
        sys.exit(128 + error.number)
    except (FolderError, *disk.errors()) as error:
        if not isinstance(error, FolderError) and disk.number(error) not in disk.FULL:
            raise
        with suppress(OSError):  # the log may be on the full disk
            print(error, flush=True)
        sys.exit(BUSY)


def execute(cell: Cell) -> None:
    """Run the cell in this process; what it is refused or stops itself for is its failure."""
    from modicum.display import Display
    from modicum.evaluate import Evaluation, evaluate
    from modicum.training import origin
    from modicum.training.loop import train

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
            held, run, began = session.config.evaluation, Run(cell.folder), time.perf_counter()
            found = evaluate(
                session.policy,
                session.task,
                session.config.sampling,
                held.eval_split,
                num_problems=held.eval_problems,
                samples=held.eval_samples,
                progress=partial(display.evaluating, "base"),
                keep=lambda rows: run.write_lines("completions-base.jsonl", rows),
                examples=session.examples,
            )
            run.write(SECONDS, {"seconds": time.perf_counter() - began})
            run.write(ENVIRONMENT, origin.record(session, cell.folder))
            run.write(BASE, asdict(found))
        except (RunInterrupted, FolderError):
            raise  # nothing is wrong with the run: the same command goes on with it
        except UserError as error:
            cell.fail(str(error))
