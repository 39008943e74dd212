"""Launchers: where the cells of a study run, named by one expression (`--launcher`).

To add one: a `Launcher`, a frozen dataclass of its settings, and its row in LAUNCHERS. The contract
suite (tests/test_study_launch.py) picks it up; docs/launchers.md explains each."""

from dataclasses import replace

from modicum import spec
from modicum.study.launchers.base import Launcher
from modicum.study.launchers.cluster import Ray, Slurm
from modicum.study.launchers.local import Here, LocalProcesses

LAUNCHERS: dict[str, type[Launcher]] = {cls.name: cls for cls in (Here, LocalProcesses, Slurm, Ray)}


def parse(text: str | Launcher, jobs: int = 1) -> Launcher:
    """The launcher that an expression names; `jobs`, the short word for its argument, comes first."""
    made: Launcher = text if isinstance(text, Launcher) else spec.build("launcher", text, LAUNCHERS)
    return made if jobs == 1 else replace(made, jobs=jobs)
