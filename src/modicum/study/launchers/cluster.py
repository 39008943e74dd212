"""Cells as commands of a scheduler, on machines that share the study's folder with this one.

A command is `python -m modicum.study.cell JOB.json` (`cell.main`), all that is ever pickled: by
submitit for SLURM (the extra `slurm`), by Ray Core (the extra `ray`)."""

import importlib
import json
import operator
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
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
class Scheduler(Runner):
    """A scheduler of commands, by what its library offers; `folder` is for the files of jobs."""

    folder: Path
    threads: int
    start: Callable[[Sequence[Sequence[str]]], Sequence[Any]]  # commands, together: their jobs
    state: Callable[[Any], str]  # how a job has ended, in its words; empty while it has not
    drop: Callable[[Any], object]  # lets a job not begin, or ends it at once
    new: list[Handle] = field(default_factory=list)

    def submit(self, cell: Cell) -> Handle:
        name = "-".join([*cell.folder.parts[-3:], platform.node(), str(os.getpid())])
        file = self.folder / f"{name}.json"  # ours alone, though others may run the same study
        make_folder(self.folder)
        file.with_suffix(".end").unlink(missing_ok=True)
        write_whole(file, json.dumps(cell.to_json(self.threads)) + "\n")
        self.new.append(Handle(cell, None, file))
        return self.new[-1]

    def ended(self, handles: Sequence[Handle], timeout: float) -> list[Handle]:
        new, self.new = self.new, []
        jobs = self.start([[sys.executable, *MODULE, str(h.place)] for h in new]) if new else []
        for handle, job in zip(new, jobs, strict=True):
            handle.job = job
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
            if handle.job is not None:
                self.drop(handle.job)


class Slurm(Launcher):
    """SLURM: `array` cells in its queue at a time, each with `gpus` GPUs and `cpus` cores.

    `minutes` is the limit of one job: a cell that needs longer saves what it has before that and
    goes on in another, as one that was preempted. `more` has other options of sbatch, such as
    "account='us', mem='64G'". With `cluster=local` the jobs run here, for a trial."""

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
        submitit, place = _library("submitit", self.name), folder.absolute() / "jobs"
        try:
            executor = submitit.AutoExecutor(place / "log", cluster=self.cluster)
        except RuntimeError as error:
            raise UserError(f"slurm cannot be used: {str(error).splitlines()[0]}") from None
        executor.update_parameters(
            name="modicum",
            timeout_min=self.minutes,
            cpus_per_task=self.cpus,
            gpus_per_node=self.gpus,
            slurm_partition=self.partition or None,
            slurm_array_parallelism=self.jobs,
            slurm_srun_args=[f"--cpus-per-task={self.cpus}"],  # it does not ask sbatch
            slurm_additional_parameters=spec.keywords("slurm: more", self.more),
        )

        def start(commands: Sequence[Sequence[str]]) -> list[Any]:
            try:
                with executor.batch():
                    # Each becomes the process of its cell, and hears SLURM itself.
                    return [executor.submit(os.execv, sys.executable, [*c]) for c in commands]
            except (submitit.core.utils.FailedJobError, OSError) as error:
                raise UserError(f"sbatch: {str(error).strip().splitlines()[-1]}") from None

        def state(job: Any) -> str:
            return f"SLURM says {job.state}" if job.done() else ""

        drop = operator.methodcaller("cancel", check=False)
        yield Scheduler(place, threads or self.cpus, start, state, drop)


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
        # A fresh process for each task.
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_calls": 1, "max_retries": 0}
        task = ray.remote(**options)(subprocess.call)

        def start(commands: Sequence[Sequence[str]]) -> list[Any]:
            return [task.remote([*command]) for command in commands]

        def state(job: Any) -> str:
            if not ray.wait([job], timeout=0)[0]:
                return ""
            try:
                return f"Ray says exit code {ray.get(job)}"
            except ray.exceptions.RayError as error:
                return f"Ray says {type(error).__name__}"

        try:
            has = ray.cluster_resources()
            if has.get("GPU", 0) < self.gpus or has.get("CPU", 0) < self.cpus:
                why = f"has less than {self} asks for"
                raise UserError(f"the Ray cluster at {self.address!r} {why}")
            place, drop = folder.absolute() / "jobs", partial(ray.cancel, force=True)
            yield Scheduler(place, threads or self.cpus, start, state, drop)
        finally:
            ray.shutdown()
