"""Cells as commands of a scheduler, on machines that share the study's folder with this one.

A command is `python -m modicum.study.cell JOB.json` (`cell.main`), all that is ever pickled: by
submitit for SLURM (the extra `slurm`), by Ray Core (the extra `ray`).
"""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from modicum import spec
from modicum.disk import make_folder, write_whole
from modicum.limits import Natural, Positive
from modicum.runs import read_object
from modicum.study.cell import Cell
from modicum.study.launchers.base import LOST, Handle, Launcher, Runner
from modicum.types import UserError

GRACE_SECONDS = 120.0  # in which cancelled cells end in order
MODULE = ("-W", "ignore::RuntimeWarning:runpy", "-m", "modicum.study.cell")


def _library(name: str, launcher: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        text = f"the launcher {launcher} needs the package {name}"
        raise UserError(f"{text}: pip install 'modicum[{launcher}]'") from None


@dataclass(eq=False)
class Commands(Runner):
    """A scheduler of commands, by its library; `folder` is for the files of jobs."""

    library: Any
    folder: Path
    threads: int
    options: dict[str, Any]

    @abstractmethod
    def start(self, command: Sequence[str]) -> Any:
        """Hand over a command: the job."""

    @abstractmethod
    def state(self, job: Any) -> str:
        """How a job has ended, in the scheduler's words; empty while it has not."""

    @abstractmethod
    def drop(self, job: Any) -> None:
        """Let a job not begin, or end it at once."""

    def submit(self, cell: Cell) -> Handle:
        name = "-".join([*cell.folder.parts[-3:], platform.node(), str(os.getpid())])
        file = self.folder / f"{name}.json"  # ours alone, though others may run the same study
        make_folder(self.folder)
        file.with_suffix(".end").unlink(missing_ok=True)
        write_whole(file, json.dumps(cell.to_json(self.threads)) + "\n")
        return Handle(cell, self.start([sys.executable, *MODULE, str(file)]), file)

    def ended(self, handles: Sequence[Handle], timeout: float) -> list[Handle]:
        time.sleep(timeout)
        return [h for h in handles if h.place.with_suffix(".end").is_file() or self.state(h.job)]

    def why(self, handle: Handle) -> tuple[int, str]:
        end, state = handle.place.with_suffix(".end"), self.state(handle.job)
        job, found = (read_object(file, optional=True) for file in (handle.place, end))
        for file in (handle.place, end):
            file.unlink(missing_ok=True)
        if "pid" in job and not found:
            handle.cell.free(job["pid"], job["host"])
        if not handle.cell.done and not handle.cell.failure:
            self.drop(handle.job)  # which a scheduler may have begun again by itself
        return (found["code"], "") if found else (LOST, state)

    def cancel(self, handles: Sequence[Handle], number: int) -> None:
        for handle in handles:
            handle.place.unlink(missing_ok=True)
        end = time.monotonic() + GRACE_SECONDS
        with suppress(KeyboardInterrupt):
            while any(handle.cell.taken for handle in handles) and time.monotonic() < end:
                time.sleep(0.25)
        for handle in handles:
            handle.place.with_suffix(".end").unlink(missing_ok=True)
            self.drop(handle.job)


@dataclass(frozen=True)
class Slurm(Launcher):
    """SLURM: `array` cells in its queue at a time, each with `gpus` GPUs and `cpus` cores.

    `minutes` is the limit of one job: a cell that needs longer saves what it has before that and
    goes on in another, as one that was preempted. `more` has other options of sbatch, such as
    "account='us', mem='64G'". With `cluster=local` the jobs run here, for a trial.
    """

    partition: str = ""
    minutes: Positive = 240
    jobs: Positive = 64
    gpus: Natural = 1
    cpus: Positive = 4
    more: str = ""
    cluster: Literal["slurm", "local"] = "slurm"

    aliases: ClassVar[dict[str, str]] = {"array": "jobs"}
    preempts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        spec.keywords("slurm: more", self.more)

    @contextmanager
    def begin(self, folder: Path, threads: int) -> Iterator[Runner]:
        submitit = _library("submitit", self.name)
        options = {
            "name": "modicum",
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus,
            "slurm_partition": self.partition or None,
            "slurm_array_parallelism": self.jobs,
            "slurm_srun_args": [f"--cpus-per-task={self.cpus}"],  # it does not ask sbatch
            "slurm_additional_parameters": spec.keywords("slurm: more", self.more),
        }
        place = folder.absolute() / "jobs"
        try:
            executor = submitit.AutoExecutor(place / "log", cluster=self.cluster)
            executor.update_parameters(**options)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"slurm cannot be used: {str(error).splitlines()[0]}") from None
        yield Jobs(submitit, place, threads or self.cpus, {"executor": executor})


@dataclass(eq=False)
class Jobs(Commands):
    """Those of submitit. The process of a job becomes that of its cell, and so hears the signals of
    SLURM. A job is a list, filled when those that were submitted together go as one array."""

    new: list[tuple[list[Any], Sequence[str]]] = field(default_factory=list)

    def start(self, command: Sequence[str]) -> list[Any]:
        job: list[Any] = []
        self.new.append((job, command))
        return job

    def ended(self, handles: Sequence[Handle], timeout: float) -> list[Handle]:
        executor, new, self.new = self.options["executor"], self.new, []
        if new:
            try:
                with executor.batch():
                    made = [executor.submit(os.execv, sys.executable, list(c)) for _, c in new]
            except (self.library.core.utils.FailedJobError, OSError) as error:
                raise UserError(f"sbatch: {str(error).strip().splitlines()[-1]}") from None
            for (job, _), one in zip(new, made, strict=True):
                job.append(one)
        return super().ended(handles, timeout)

    def state(self, job: list[Any]) -> str:
        return f"SLURM says {job[0].state}" if job and job[0].done() else ""

    def drop(self, job: list[Any]) -> None:
        for one in job:
            one.cancel(check=False)


@dataclass(frozen=True)
class Ray(Launcher):
    """Ray Core: `jobs` tasks at a time of the cluster at `address` ('local': one begun here), each
    with `gpus` GPUs and `cpus` cores."""

    address: str = "auto"
    jobs: Positive = 64
    gpus: Natural = 1
    cpus: Positive = 1

    preempts: ClassVar[bool] = True

    @contextmanager
    def begin(self, folder: Path, threads: int) -> Iterator[Runner]:
        ray = _library("ray", self.name)
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"no Ray cluster at {self.address!r}: {first}") from None
        try:
            has = ray.cluster_resources()
            if has.get("GPU", 0) < self.gpus or has.get("CPU", 0) < self.cpus:
                raise UserError(
                    f"the Ray cluster at {self.address!r} has less than {self} asks for"
                )
            options = {"num_cpus": self.cpus, "num_gpus": self.gpus}
            yield Tasks(ray, folder.absolute() / "jobs", threads or self.cpus, options)
        finally:
            ray.shutdown()


class Tasks(Commands):
    """Those of Ray, each in a fresh process."""

    def start(self, command: Sequence[str]) -> Any:
        make = self.library.remote(max_calls=1, max_retries=0, **self.options)
        return make(subprocess.call).remote(list(command))

    def state(self, job: Any) -> str:
        if not self.library.wait([job], timeout=0)[0]:
            return ""
        try:
            return f"Ray says exit code {self.library.get(job)}"
        except self.library.exceptions.RayError as error:
            return f"Ray says {type(error).__name__}"

    def drop(self, job: Any) -> None:
        self.library.cancel(job, force=True)
