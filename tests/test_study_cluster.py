"""Cells as commands of a scheduler: SLURM by stubs of its programs and by submitit here, Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import slurm_stub
from modicum.config import TrainConfig
from modicum.runs import read_object
from modicum.study.cell import RESULT, Cell
from modicum.study.design import Study
from modicum.study.launch import Bench, StudyObserver
from modicum.study.launchers import cluster, parse
from modicum.study.launchers.base import Handle
from modicum.types import FolderError, RunInterrupted, UserError

TESTS = Path(__file__).parent
# Processes of submitit's local executor outlive a job that is dropped by a moment.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function Popen.__del__:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a SLURM of this machine; what it runs is `queued_worker`."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", f"{slurm_stub.install(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STUB", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setattr(cluster, "MODULE", ("-m", "queued_worker"))
    monkeypatch.setattr("submitit.core.core.InfoWatcher.update_if_long_enough", now)
    return tmp_path


def now(watcher: object, mode: str) -> None:
    """States are asked for at every look, and not after seconds."""
    if mode != "cache":
        watcher.update()  # type: ignore[attr-defined]


class Quiet(StudyObserver):
    """Imports no display, which is slow."""

    def ended(self, done: int, total: int, cell: Cell, seconds: float) -> None:
        pass


def cells(folder: Path, *labels: str) -> list[Cell]:
    outs = [folder / label.replace(" ", "-") for label in labels]
    return [Cell(out.name, TrainConfig(out=str(out)), "base") for out in outs]


def run(made: Sequence[Cell], text: str, **changes: bool) -> None:
    folder = made[0].folder.parent
    study = Study("?", ("full", "last(1)"))
    Bench(study, folder, parse(text), Quiet(), threads=3, **changes).run(made)


def times(cell: Cell) -> int:
    return len((cell.folder / "begun").read_text().split())


def test_cells_go_as_an_array_and_those_that_a_signal_ends_go_on(queue: Path) -> None:
    made = cells(queue, "calm", "killed", "timed", "fault")
    run(made, "slurm(partition='gpu', minutes=30, array=8, more=\"account='us'\")")
    assert [cell.done for cell in made] == [True, True, True, False]
    assert [times(cell) for cell in made] == [1, 2, 2, 1]
    assert made[3].failure == (
        "the process ended with exit code 1; its log ends: ZeroDivisionError: by the program"
    )
    seen = [read_object(cell.folder / RESULT) for cell in made[:2]]
    assert [one["threads"] for one in seen] == ["3", "3"]
    assert seen[0]["gpu"] == "0"
    script = (queue / "sbatch.txt").read_text()
    for line in ("array=0-3%4", "partition=gpu", "time=30", "gpus-per-node=1", "account=us"):
        assert f"#SBATCH --{line}\n" in script
    assert "--cpus-per-task=4" in script
    assert [path.name for path in (queue / "jobs").iterdir()] == ["log"]


def test_what_is_asked_to_end_saves_and_goes_on(queue: Path) -> None:
    (mine,) = cells(queue, "waits")

    def stop() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (mine.folder / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(RunInterrupted, match="the same command goes on"):
        run([mine], "slurm")
    assert not mine.done and not mine.failure and not mine.taken
    run([mine], "slurm")
    assert mine.done and times(mine) == 2


def test_a_full_disk_stops_the_study_and_fails_no_cell(queue: Path) -> None:
    (mine,) = cells(queue, "full")
    with pytest.raises(FolderError, match="no space is left; the same command goes on then"):
        run([mine], "slurm")
    assert not mine.failure
    run([mine], "slurm")
    assert mine.done


def test_what_sbatch_refuses_is_one_line(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (queue / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n"
    )
    with pytest.raises(UserError, match="sbatch: error: invalid partition"):
        run(cells(queue, "calm"), "slurm")
    shutil.rmtree(queue / "bin")
    with pytest.raises(UserError, match=r"slurm cannot be used: .*srun"):
        run(cells(queue, "calm"), "slurm")


def test_a_node_that_is_gone_leaves_no_lock(queue: Path) -> None:
    """Nobody wrote how it ended: the scheduler says so, and another node goes on."""
    (mine,) = cells(queue, "killed")
    lock = mine.folder.with_name("killed.lock")

    class Gone(cluster.Scheduler):
        def why(self, handle: Handle) -> tuple[int, str]:
            for path in (handle.place, lock):
                if path.exists():
                    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "node7"}))
            return super().why(handle)

    original = cluster.Scheduler
    cluster.Scheduler = Gone  # type: ignore[misc]
    try:
        run([mine], "slurm")
    finally:
        cluster.Scheduler = original  # type: ignore[misc]
    assert mine.done and times(mine) == 2


SHARED = """
import os, sys, time
sys.path[:] = {path!r}
import queued_worker, types
sys.modules["torch"] = types.SimpleNamespace(
    set_num_threads=lambda n: None, get_num_threads=lambda: 1)
from pathlib import Path
from modicum.study import cell
from test_study_cluster import cells, run
cell._run = queued_worker.run
os.environ["OMP_NUM_THREADS"] = "1"
folder = Path({folder!r})
made = cells(folder, *{labels!r})
(folder / f"ready-{{os.getpid()}}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.02)
run(made, "here")
assert all(c.done for c in made)
"""


def test_two_processes_share_a_study_and_run_no_cell_twice(tmp_path: Path) -> None:
    labels = [f"slow {number}" for number in range(4)]
    code = SHARED.format(path=[str(TESTS), *sys.path], folder=str(tmp_path), labels=labels)
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=TESTS) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    made = cells(tmp_path, *labels)
    assert [times(cell) for cell in made] == [1, 1, 1, 1]
    pids = {(cell.folder / "begun").read_text() for cell in made}
    assert len(pids) == 2, "each took a share"
    assert not list(tmp_path.glob("*.lock"))


def test_a_cell_of_another_machine_is_waited_for(tmp_path: Path) -> None:
    """It is told once who has it, and that its lock can be removed by hand."""
    (mine,) = cells(tmp_path, "calm")
    lock, said = tmp_path / "calm.lock", list[str]()
    lock.write_text(json.dumps({"pid": 1, "host": "node7", "folder": tmp_path.stat().st_ino}))

    class Heard(StudyObserver):
        def say(self, text: str) -> None:
            said.append(text)

    def other() -> None:
        while not said:
            time.sleep(0.05)
        mine.folder.mkdir()
        (mine.folder / RESULT).write_text('{"trained": null}')
        lock.unlink()

    threading.Thread(target=other).start()
    Bench(Study("?", ("full", "last(1)")), tmp_path, parse("here"), Heard()).run([mine])
    assert said[0].startswith(f"waiting: another process is running calm in {tmp_path}: 1 on node7")
    assert f"if it is gone, remove {lock}" in said[0]
    assert len(said) == 2 and "calm: done" in said[1]
