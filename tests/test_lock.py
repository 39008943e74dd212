"""One process writes a folder: who is refused, who is let in, and that only one is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modicum import disk, runs
from modicum.config import TrainConfig
from modicum.training.loop import Observer, train
from modicum.types import UserError


def written(folder: Path, /, **changes: Any) -> None:
    """The lock of this process, but for some changes."""
    (folder / ".lock").unlink(missing_ok=True)
    with disk.held(folder):
        content = json.loads((folder / ".lock").read_text())
    (folder / ".lock").write_text(json.dumps({**content, **changes}))


def in_child(work: Callable[[], int]) -> int:
    """Start a child that ends with the exit code of `work`; its number."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return child


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    def other() -> int:
        try:
            with disk.held(tmp_path, "painting"):
                return 0
        except disk.FolderTaken as error:
            (tmp_path / "said").write_text(str(error))
            return 1

    with disk.held(tmp_path):
        assert code_of(in_child(other)) == 1
    said = (tmp_path / "said").read_text()
    where = f"{tmp_path}: {os.getpid()} on {os.uname().nodename}; let it end first"
    assert said.startswith(f"another process is painting {where}")
    assert code_of(in_child(other)) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["said"]


def test_one_that_was_stopped_while_it_began_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PATIENCE", 0.1)
    with (tmp_path / ".lock").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"about to begin or end writing .* does not go on"):
            disk.held(tmp_path).__enter__()
    with disk.held(tmp_path):
        pass


def test_an_error_and_a_fork_leave_the_lock_to_its_owner(tmp_path: Path) -> None:
    held = disk.held(tmp_path)
    with pytest.raises(ZeroDivisionError), held:
        child = os.fork()
        if child == 0:  # it leaves the context as its parent does
            try:
                with disk.held(tmp_path):
                    pass
            except UserError:
                held.__exit__(None, None, None)
            os._exit(0)
        assert code_of(child) == 0
        assert (tmp_path / ".lock").exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_nothing(tmp_path: Path) -> None:
    """Also before its parent has asked how it ended."""

    def work() -> int:
        with disk.held(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(60)
        return 0

    child = in_child(work)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(disk.FolderTaken, match=f": {child} on "):
        disk.check_free(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / ".lock").exists()
    disk.check_free(tmp_path)
    with disk.held(tmp_path):
        pass
    assert code_of(child) == -signal.SIGKILL


@pytest.mark.parametrize(
    "changes",
    [
        {},  # our number was another process's
        {"pid": 2**22 + 1},  # above the highest number that Linux gives
        {"folder": 1},  # the folder is a copy
    ],
    ids=str,
)
def test_a_stale_lock_is_no_lock(changes: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path, **changes)
    disk.check_free(tmp_path)
    with disk.held(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


NOBODY = b'{"pid": -1, "host": "", "folder": 1}'


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff", NOBODY])
def test_a_lock_that_says_nothing_holds_nothing(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PATIENCE", 0.1)
    (tmp_path / ".lock").write_bytes(content)
    disk.check_free(tmp_path)
    with disk.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_another_machine_is_believed_to_live(tmp_path: Path) -> None:
    """It cannot be asked; neither can another container on this one."""
    written(tmp_path, pid=11, host="node7")
    for look in (disk.check_free, lambda folder: disk.held(folder).__enter__()):
        with pytest.raises(UserError) as caught:
            look(tmp_path)
        text = f"another process is writing {tmp_path}: 11 on node7; if it is gone, remove"
        assert str(caught.value) == f"{text} {tmp_path / '.lock'}"


def test_a_fork_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    def work() -> int:
        with disk.held(tmp_path):
            child = os.fork()
            if child == 0:
                time.sleep(60)
            (tmp_path / "child").write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert code_of(in_child(work)) == -signal.SIGKILL
    with disk.held(tmp_path):
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_of_the_system_the_name_decides(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few file systems have none."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    written(tmp_path, **({} if alive else {"pid": 2**22 + 1}))
    with pytest.raises(disk.FolderTaken) if alive else contextlib.nullcontext():
        disk.check_free(tmp_path)


@pytest.mark.parametrize("left", ["nothing", "a stale lock", "an empty lock"])
def test_of_many_that_start_at_once_one_goes_on(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PATIENCE", 0.2)
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        if left == "a stale lock":
            written(folder, pid=2**22 + 1)
        elif left == "an empty lock":
            (folder / ".lock").touch()
        start = time.time() + 0.05

        def work(folder: Path = folder, start: float = start) -> int:
            while time.time() < start:
                pass
            try:
                with disk.held(folder):
                    end = time.time() + 10
                    while len(list(folder.glob("refused-*"))) < 5 and time.time() < end:
                        time.sleep(0.01)
                    return 0
            except disk.FolderTaken:
                (folder / f"refused-{os.getpid()}").touch()
                return 1

        codes = [code_of(child) for child in [in_child(work) for _ in range(6)]]
        assert sorted(codes) == [0, 1, 1, 1, 1, 1]
        assert len(list(folder.iterdir())) == 5


class Intruder(Observer):
    """Tries to begin, resume and replace the run that is going on."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.said = config, list[str]()

    def step(self, metrics: dict[str, float]) -> None:
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(disk.FolderTaken) as caught:
                train(self.config, **how)
            self.said.append(str(caught.value))


def test_a_run_has_its_folder_alone(bare: TrainConfig, tmp_path: Path) -> None:
    """Refused before a model is loaded; one run after the other in a process is no trouble."""
    intruder = Intruder(bare)
    train(bare, intruder)
    assert len(intruder.said) == 3 * bare.steps
    assert {f": {os.getpid()} on " in line for line in intruder.said} == {True}
    folder = Path(bare.out)
    assert [line["step"] for line in runs.read_lines(folder / "metrics.jsonl")] == [0, 1, 2, 3]
    assert not (folder / ".lock").exists()
    train(bare, overwrite=True)
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, UserError])
def test_a_run_that_fails_lets_go_of_its_folder(
    error: type[BaseException], bare: TrainConfig
) -> None:
    class Failing(Observer):
        def step(self, metrics: dict[str, float]) -> None:
            raise error

    with pytest.raises(error):
        train(bare, Failing())
    assert not (Path(bare.out) / ".lock").exists()
    train(bare, resume=True)


def test_a_stale_lock_is_no_part_of_a_run(bare: TrainConfig, tmp_path: Path) -> None:
    """A folder with nothing else is empty, and to overwrite a run is to replace it."""
    folder = Path(bare.out)
    folder.mkdir()
    written(folder, pid=2**22 + 1)
    train(bare)
    written(folder, pid=2**22 + 1)
    result = train(bare, overwrite=True)
    assert result["steps"] == bare.steps
    assert not (folder / ".lock").exists()


def test_readers_are_never_locked_out(bare: TrainConfig) -> None:
    from modicum.face.training import load
    from modicum.training.checkpoint import reload

    train(bare)
    with disk.held(Path(bare.out)):
        assert load(bare.out).values["steps"] == bare.steps
        assert reload(Path(bare.out)).config.steps == bare.steps


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    held = disk.held(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written: Is a directory"):
        held.__enter__()
