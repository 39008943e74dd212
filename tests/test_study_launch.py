"""The contract of launchers: cells done once, kept when they fail, resumed when cut."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

import cut_worker
from helpers import metrics_of, tensors_of
from modicum import disk
from modicum.config import Compute, Held, TrainConfig
from modicum.runs import read_object
from modicum.study import launch
from modicum.study.cell import BASE, Cell
from modicum.study.design import Study
from modicum.study.launch import Bench, StudyObserver, locked
from modicum.study.launchers import LAUNCHERS, Launcher, LocalProcesses, local, parse
from modicum.training.loop import train
from modicum.types import FolderError, RunInterrupted, UserError

# Processes of submitit's local executor outlive a job that is dropped by a moment.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function Popen.__del__:pytest.PytestUnraisableExceptionWarning"
)


def dies(completions: list[str], **columns: Any) -> list[float]:
    """A reward that takes its process along, as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def ends(completions: list[str], **columns: Any) -> list[float]:
    """A reward in whose time the process is asked to end."""
    os.kill(os.getpid(), signal.SIGTERM)
    return parity(completions)


def parity(completions: list[str], **columns: Any) -> list[float]:
    """A reward that a random model gets sometimes, and that every process can import."""
    return [float(len(text) % 2) for text in completions]


def waits(completions: list[str], **columns: Any) -> list[float]:
    """The same, after a while."""
    time.sleep(0.1)
    return parity(completions)


def cell(config: TrainConfig, folder: Path, base: Path, **changes: Any) -> Cell:
    changes = {"reward": REWARD.format("parity"), **changes}
    made = replace(config, out=str(folder), evaluation=Held(2, 1), **changes)
    return Cell(folder.name, made, str(base))


def evaluated_base(config: TrainConfig, folder: Path) -> Cell:
    made = Cell("base", cell(config, folder, folder).config)
    run_all([made], parse("here"), Heard())
    assert made.done, made.failure
    return made


REWARD = "function('test_study_launch:{}')"


class Heard(StudyObserver):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str]] = []

    def ended(self, done: int, total: int, cell: Cell, seconds: float) -> None:
        self.lines.append((done, total, cell.label))


TRIAL = {"slurm": "slurm(cluster=local, gpus=0, cpus=1)", "ray": "ray(address=local, gpus=0)"}
"""How a launcher is tried on this machine, where its name alone does not do."""
NEEDS = {"slurm": "submitit", "ray": "ray"}


def slow(*quick: str) -> list[Any]:
    """All launchers; those that start processes, or other ones than these, in the slow tests."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in quick)) for name in LAUNCHERS
    ]


@pytest.fixture(params=slow("here", "local"))
def launcher(request: pytest.FixtureRequest) -> Launcher:
    """Every launcher that there is."""
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return parse(TRIAL.get(request.param, request.param))


LONG = pytest.mark.parametrize("launcher", slow("here"), indirect=True)
"""For tests of many seconds, most of them spent on starting processes."""
OF_PROCESSES = pytest.mark.parametrize("launcher", slow("local")[1:], indirect=True)


def run_all(
    cells: Sequence[Cell], launcher: Launcher, heard: Heard, retry_failed: bool = False
) -> None:
    study = Study("?", ("full", "last(1)"))
    Bench(study, cells[0].folder.parent, launcher, heard, retry_failed, threads=1).run(cells)


def names(cells: Sequence[Cell]) -> set[str]:
    return {cell.label for cell in cells}


@LONG
def test_cells_run_once_and_failures_stay_until_asked_for(
    quick: TrainConfig, tmp_path: Path, launcher: Launcher
) -> None:
    base = evaluated_base(quick, tmp_path / "base")
    assert read_object(base.folder / BASE)["num_problems"] == 2
    cells = [
        cell(quick, tmp_path / "good", base.folder, steps=2),
        cell(quick, tmp_path / "none", base.folder, update="last(99)"),
        cell(quick, tmp_path / "torn", base.folder, reward=REWARD.format("gone")),
    ]
    heard = Heard()
    run_all(cells, launcher, heard)
    assert {label for *_, label in heard.lines} == names(cells)
    assert [line[:2] for line in heard.lines] == [(n, 3) for n in (1, 2, 3)]
    assert cells[0].done and not cells[0].failure
    assert read_object(cells[0].folder / "result.json")["steps"] == 2
    assert not (cells[0].folder / "checkpoints").exists()
    assert "last" in cells[1].failure
    assert "gone" in cells[2].failure
    assert cells[0].summary.endswith("%") and cells[1].summary.startswith("failed: ")
    heard = Heard()
    run_all(cells, launcher, heard)
    assert heard.lines == []
    run_all(cells, launcher, heard, retry_failed=True)
    assert {label for *_, label in heard.lines} == {"none", "torn"}


@OF_PROCESSES
def test_a_cell_that_takes_its_process_along_fails_alone(
    quick: TrainConfig, tmp_path: Path, launcher: Launcher
) -> None:
    base = evaluated_base(quick, tmp_path / "base")
    cells = [
        cell(quick, tmp_path / "dead", base.folder, reward=REWARD.format("dies")),
        cell(quick, tmp_path / "good", base.folder, steps=2),
    ]
    two = replace(launcher, jobs=2)  # type: ignore[type-var]
    run_all(cells, two, Heard())
    assert re.search("by signal 9, twice; .* out of memory|(SLURM|Ray) says", cells[0].failure)
    assert cells[1].done and not cells[1].failure
    heard = Heard()
    run_all(cells, two, heard, retry_failed=True)
    assert heard.lines == [(1, 1, "dead")]


@pytest.mark.parametrize(
    "times",
    [
        # The server hears nothing of what is sent to all.
        {"running server SIGTERM": 1, "running worker SIGKILL": 2},
        pytest.param(
            {
                **dict.fromkeys(("starting server SIGINT", "running server SIGHUP"), 1),
                **dict.fromkeys(("running server SIGKILL", "running worker SIGTERM"), 2),
                **dict.fromkeys(("starting worker SIGINT", "starting worker SIGSEGV"), 2),
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_a_signal_ends_goes_on_and_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: dict[str, int]
) -> None:
    """A worker or the server that forks it, while it starts and while it runs."""
    monkeypatch.setattr(local, "work", cut_worker.work)
    monkeypatch.setattr(local, "PRELOAD", ["pytest", "cut_worker"])
    outs = {label: tmp_path / label.replace(" ", "-") for label in times}
    cells = [Cell(label, TrainConfig(out=str(path)), "base") for label, path in outs.items()]
    forkserver._forkserver._stop()
    heard = Heard()
    try:
        run_all(cells, LocalProcesses(), heard)
    finally:
        forkserver._forkserver._stop()  # for other tests it loads the libraries
    assert [(c.done, c.failure) for c in cells] == [(True, "")] * len(times)
    assert {label for *_, label in heard.lines} == set(times)
    assert {
        label: len(list(tmp_path.glob(f"{out.name}-*"))) for label, out in outs.items()
    } == times


def test_every_place_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a run names itself is the run's affair."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "work", cut_worker.seeing)
    monkeypatch.setattr(local, "PRELOAD", ["pytest", "cut_worker"])
    devices = {"a": "auto", "b": "cuda", "c": "auto", "named": "cuda:1", "cpu": "cpu"}
    configs = [
        TrainConfig(out=str(tmp_path / name), compute=Compute(device=device))
        for name, device in devices.items()
    ]
    cells = [Cell(config.out, config, "base") for config in configs]
    forkserver._forkserver._stop()
    try:
        run_all(cells, parse("local(jobs=2, gpus='3, 5')"), Heard())
        shared = [
            replace(one, config=replace(one.config, out=one.config.out + "2")) for one in cells
        ]
        with pytest.raises(UserError, match="places for 1 runs at a time, not 2; local"):
            run_all(shared[:2], parse("local(jobs=2, gpus='7')"), Heard())
        run_all(shared[:2], parse("local(jobs=2, gpus='7', per_gpu=2)"), Heard())
    finally:
        forkserver._forkserver._stop()
    seen = [read_object(cell.folder / "result.json")["gpu"] for cell in [*cells, *shared[:2]]]
    assert set(seen[:2]) == {"3", "5"}
    assert seen[2] in ("3", "5") and seen[3:] == [None, None, "7", "7"]


def test_the_gpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.visible_gpus() == []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,7")
    assert local.visible_gpus() == ["GPU-a", "7"]


def test_a_server_that_is_killed_while_it_starts_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise EOFError("unexpected EOF")  # so multiprocessing says it

    monkeypatch.setattr(ForkServerProcess, "start", killed)
    cells = [Cell("one", TrainConfig(out=str(tmp_path / "one")), "base")]
    with pytest.raises(FolderError, match="runs was killed; interrupted; the same"):
        run_all(cells, LocalProcesses(), Heard())
    assert not cells[0].failure


def test_a_cell_is_the_run_that_train_makes(
    quick: TrainConfig, tmp_path: Path, launcher: Launcher
) -> None:
    base = evaluated_base(quick, tmp_path / "base")
    mine = replace(cell(quick, tmp_path / "cell", base.folder, steps=3), keep=True)
    run_all([mine], launcher, Heard())
    own = train(replace(mine.config, out=str(tmp_path / "own")))
    assert metrics_of(mine.folder) == metrics_of(tmp_path / "own")
    assert tensors_of(mine.folder) == tensors_of(tmp_path / "own")
    # The evaluation of the base is shared by the cells of a study, and none of them pays for it.
    shared = {"step": -1, "generated": {"completions": 0, "tokens": 0}}
    assert read_object(mine.folder / "result.json")["base"] == own["base"] | shared


@pytest.mark.parametrize("launcher", slow("here"), indirect=True)
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_saves_the_running_cells_and_they_go_on(
    quick: TrainConfig, tmp_path: Path, launcher: Launcher, number: int
) -> None:
    base = evaluated_base(quick, tmp_path / "base")
    steps = 24 if launcher.preempts else 6  # it looks once a second whether it is to end
    slow = {"reward": REWARD.format("waits"), "steps": steps}
    mine = replace(cell(quick, tmp_path / "cell", base.folder, **slow), keep=True)

    def stop() -> None:
        path = mine.folder / "metrics.jsonl"
        end = time.monotonic() + 60
        while time.monotonic() < end and not (path.is_file() and path.read_text().count("\n") >= 2):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    with pytest.raises(RunInterrupted, match="the same command goes on") as caught:
        run_all([mine], launcher, Heard())
    assert caught.value.number == number
    assert not mine.done and not mine.failure
    assert 2 <= len(metrics_of(mine.folder)) < steps
    assert list((mine.folder / "checkpoints").glob("step-*"))
    run_all([mine], launcher, Heard())
    train(replace(mine.config, out=str(tmp_path / "own")))
    assert metrics_of(mine.folder) == metrics_of(tmp_path / "own")
    assert tensors_of(mine.folder) == tensors_of(tmp_path / "own")


@LONG
def test_a_cell_whose_folder_cannot_be_written_now_has_not_failed(
    quick: TrainConfig, tmp_path: Path, launcher: Launcher
) -> None:
    """Another process writes it, or the disk is full: the study stops, and goes on later."""
    base = evaluated_base(quick, tmp_path / "base")
    mine = cell(quick, tmp_path / "cell", base.folder, steps=1)
    mine.folder.mkdir()
    with disk.held(mine.folder), pytest.raises(FolderError, match="another process is writing"):
        run_all([mine], launcher, Heard())
    assert not mine.done and not mine.failure
    run_all([mine], launcher, Heard())
    assert mine.done


@pytest.mark.slow
def test_a_cell_that_is_asked_to_end_has_not_failed(quick: TrainConfig, tmp_path: Path) -> None:
    """A cluster may send SIGTERM to every process of a study, and again to each that it begins."""
    base = evaluated_base(quick, tmp_path / "base")
    mine = cell(quick, tmp_path / "cell", base.folder, reward=REWARD.format("ends"))
    with pytest.raises(RunInterrupted, match="the same command goes on") as caught:
        run_all([mine], LocalProcesses(), Heard())
    assert caught.value.number == signal.SIGTERM
    assert mine.summary == "stopped"
    assert list((mine.folder / "checkpoints").glob("step-*"))


def test_what_a_launcher_cannot_do_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = os.cpu_count() or 1
    for text, jobs, message in (
        ("locl", 1, "unknown launcher 'locl'; did you mean 'local'"),
        ("here", 2, "here runs one at a time; local runs several"),
        ("local", 1 + cores, f"jobs must be at most {cores}"),
        *((name, 0, "jobs must be at least 1, not 0") for name in LAUNCHERS),
        ("slurm(array=0)", 1, "jobs must be at least 1, not 0"),
        ("slurm(more='account')", 1, "more 'account' must be name=value"),
    ):
        with pytest.raises(UserError, match=message):
            parse(text, jobs)
    assert parse("local(jobs=2)") == parse("local", 2) == LocalProcesses(2)
    assert parse("slurm(array=8)") == parse("slurm(jobs=8)") == parse("slurm", 8)


@pytest.mark.parametrize("name", NEEDS)
def test_a_library_that_is_missing_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, NEEDS[name], None)
    with pytest.raises(UserError, match=rf"needs the package .*: pip install 'modicum\[{name}\]'"):
        parse(name).begin(tmp_path, 1).__enter__()


def test_a_study_is_written_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "WRITING_SECONDS", 0.2)

    def other() -> str:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            said = "mine"
            try:
                with locked(tmp_path, "study"):
                    pass
            except UserError as error:
                said = str(error)
            finally:
                os.write(writer, said.encode())
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as file:
            return file.read()

    with locked(tmp_path, "study"):
        assert "another process is writing the study" in other()
    assert other() == "mine"


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json:1: not JSON"):
        read_object(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(UserError, match="an object is wanted"):
        read_object(tmp_path / "x.json")
