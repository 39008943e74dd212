"""What ends a run before its time: signals, a full disk, a kill at the very end."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import Fails, metrics_of, tensors_of
from modicum import anatomy, cli, disk, machine, runs, tracking
from modicum.config import Held, TrainConfig
from modicum.training import loop, metrics
from modicum.training.loop import Observer, train
from modicum.types import FolderError, RunInterrupted, UserError

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
MEASURED = ("seconds", "peak_memory_bytes", "start_memory_bytes")


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Signals have their default, also where the tests run under nohup, which runs go by."""
    past = signal.getsignal(signal.SIGHUP)
    if past == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, past)


@pytest.fixture
def config(quick: TrainConfig) -> TrainConfig:
    """Four steps with all that a run can write."""
    return replace(quick, update="last(1)", evaluation=Held(4, 2, eval_every=2))


UNCUT: dict[str, Any] = {}


@pytest.fixture
def whole(config: TrainConfig, tmp_path: Path) -> dict[str, Any]:
    """What the uncut run leaves, which is the same for all."""
    if not UNCUT:
        train(replace(config, out=str(tmp_path / "whole")))
        UNCUT.update(left(tmp_path / "whole"))
    return copy.deepcopy(UNCUT)


def left(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, without what is measured."""
    found = runs.read_object(folder / "result.json")
    names = ("samples.jsonl", "evaluations.jsonl")
    return {
        "metrics": metrics_of(folder),
        "tensors": tensors_of(folder),
        "result": {key: value for key, value in found.items() if key not in MEASURED},
        **{name: runs.read_lines(folder / name) for name in names},
        "files": sorted(p.name for p in folder.iterdir()),
    }


class Signals(Observer):
    """Sends a signal to this process at a moment."""

    def __init__(self, number: int, moment: str) -> None:
        self.number, self.moment = number, moment

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            self.moment = ""
            os.kill(os.getpid(), self.number)

    def begin(self, session: Any, first_step: int) -> None:
        self._at("begin")

    def step(self, metrics: dict[str, float]) -> None:
        self._at(f"after step {metrics['step'] + 1:g}")

    def evaluating(self, name: str, done: int, total: int) -> None:
        self._at(f"in {name}")


@pytest.mark.parametrize(
    ("moment", "number", "steps"),
    [
        ("begin", signal.SIGTERM, 0),
        ("in base", signal.SIGHUP, 0),
        ("after step 1", signal.SIGTERM, 1),
        ("after step 3", signal.SIGINT, 3),
        ("in step 2", signal.SIGTERM, 2),
        ("after step 4", signal.SIGTERM, 4),
        ("in trained", signal.SIGTERM, 4),
    ],
)
def test_a_signal_ends_a_run_that_goes_on_as_if_uncut(
    moment: str, number: int, steps: int, config: TrainConfig, whole: dict[str, Any]
) -> None:
    before = [signal.getsignal(n) for n in ENDING]
    with pytest.raises(RunInterrupted, match="--resume goes on") as caught:
        train(config, Signals(number, moment))
    assert caught.value.number == number
    assert [signal.getsignal(n) for n in ENDING] == before
    folder = Path(config.out)
    assert len(metrics_of(folder) if steps else []) == steps
    assert [c.name for c in runs.checkpoints(folder)][-1:] == [f"step-00000{steps}"] * bool(steps)
    assert not (folder / "result.json").exists()
    assert not (folder / ".lock").exists()
    train(config, resume=True)
    assert left(folder) == whole


def test_a_second_signal_ends_at_once(bare: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint that is being written is given up; the one before counts."""
    real, saved = loop.save, []

    def slow(session: Any, run: Any, step: int) -> Path:
        saved.append(step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("it went on")
        return real(session, run, step)

    monkeypatch.setattr(loop, "save", slow)
    with pytest.raises(RunInterrupted, match="interrupted after step 2"):
        train(bare, Signals(signal.SIGTERM, "after step 3"))
    assert saved == [2, 3]


@pytest.mark.parametrize("number", ENDING)
def test_the_first_signal_waits_for_what_is_whole(number: int) -> None:
    outside = signal.getsignal(number)
    with machine.Interrupts(at_once=True) as interrupts:
        done = False
        with pytest.raises(machine.Stopped) as caught, interrupts.whole():
            signal.raise_signal(number)
            done = True
        assert done
        assert caught.value.number == interrupts.number == number
    assert signal.getsignal(number) is outside
    with machine.Interrupts(at_once=True), pytest.raises(machine.Stopped):
        signal.raise_signal(number)
        pytest.fail("it went on")


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends to a process and to its group."""
    with machine.Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.asked
        later = time.monotonic() + 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(machine.Stopped):
            signal.raise_signal(signal.SIGTERM)


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with machine.Interrupts(at_once=True):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (lambda: signal.raise_signal(signal.SIGINT), 130, "interrupted"),
        (lambda: signal.raise_signal(signal.SIGTERM), 143, "ended by SIGTERM"),
        (lambda: signal.raise_signal(signal.SIGHUP), 129, "ended by SIGHUP"),
        (RunInterrupted("interrupted after step 5; --resume", 2), 130, "interrupted after step 5;"),
        (RunInterrupted("interrupted after step 5; --resume", 15), 143, "interrupted after step 5"),
        (OSError(errno.ENOSPC, "No space", "a/b"), 2, "error: a/b: No space left on device"),
        (PermissionError(13, "Denied", "c"), 2, "error: c: Permission denied"),
        (OSError("a library's own words"), 2, "error: a library's own words"),
        (FolderError("x cannot be written"), 2, "error: x cannot be written"),
    ],
)
def test_every_end_is_one_line_and_a_code(
    raised: Any,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: list[str]) -> int:
        if isinstance(raised, BaseException):
            raise raised
        raised()
        pytest.fail("it went on")

    before = [signal.getsignal(n) for n in ENDING]
    monkeypatch.setattr("modicum.commands.tasks.run", fail)
    monkeypatch.setattr(sys, "argv", ["modicum", "tasks"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert [signal.getsignal(n) for n in ENDING] == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


# A full disk -----------------------------------------------------------------------------


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("size", [100, 700, 1500, 3000, 6000, 60_000])
def test_a_run_that_finds_no_room_goes_on_when_there_is(
    size: int, config: TrainConfig, whole: dict[str, Any]
) -> None:
    """100 bytes hold no lock, 700 no settings; then no metrics, no checkpoint."""
    folder = Path(config.out)
    for number in range(2):
        with at_most(size), pytest.raises(FolderError) as caught:
            train(config, resume=number > 0 and (folder / "config.toml").exists())
        line = str(caught.value)
        assert line.startswith(f"{folder} cannot be written: File too large")
        assert not (folder / ".lock").exists()
        assert not (folder / "result.json").exists()
        assert not list(folder.rglob("*.tmp")) and not list(folder.rglob(".step-*"))
    began = (folder / "config.toml").exists()
    assert began == (size > 1000)
    assert line.endswith("; when it can be, --resume goes on") == began
    train(config, resume=began)
    assert left(folder) == whole


@pytest.mark.parametrize(
    "name", ["result.json", "anatomy.json", "samples.jsonl", "completions-base.jsonl"]
)
def test_every_file_of_a_run_may_be_the_one_without_room(
    name: str, config: TrainConfig, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any, **__: Any) -> Any:
        if name in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real[path.name == name](path, *_, **__)

    real = {True: Path.open, False: Path.open}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(FolderError, match=r"No space left on device \(.* MB are free\)"):
            train(config)
    assert not (Path(config.out) / ".lock").exists()
    train(config, resume=True)
    assert left(Path(config.out)) == whole


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "runs/x cannot be written: No space left on device (2.0 MB are needed, "),
        (errno.EDQUOT, "runs/x cannot be written: Disk quota exceeded (2.0 MB are needed, "),
        (errno.EFBIG, "runs/x cannot be written: File too large"),
        (errno.EIO, "runs/x cannot be written: Input/output error"),
        (errno.EROFS, "runs/x cannot be written: Read-only file system"),
        (errno.EACCES, "runs/x cannot be written: Permission denied"),
    ],
)
def test_what_the_system_has_against_it_is_said(number: int, text: str) -> None:
    from safetensors import SafetensorError

    said = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    for error in (OSError(number, os.strerror(number)), SafetensorError(said)):
        with pytest.raises(FolderError) as caught, disk.writing(Path("runs/x"), 2_000_000):
            raise error
        assert str(caught.value).startswith(text)
    with pytest.raises(SafetensorError), disk.writing(Path("runs/x")):
        raise SafetensorError("invalid header")


def test_a_half_line_is_cut_when_a_run_goes_on(config: TrainConfig, whole: dict[str, Any]) -> None:
    with pytest.raises(RunInterrupted):
        train(config, Signals(signal.SIGTERM, "after step 3"))
    folder = Path(config.out)
    for name in ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 1, "na')
    train(config, resume=True)
    assert left(folder) == whole


# The very end ----------------------------------------------------------------------------


def killed_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends before what `place` names is done."""
    module, _, name = place.rpartition(".")
    holder = {
        "anatomy": anatomy,
        "metrics": metrics,
        "Tracker": tracking.Tracker,
        "Run": runs.Run,
        "loop": loop,
    }[module]
    real: Callable[..., Any] = getattr(holder, name)

    def kill(*args: Any, **more: Any) -> Any:
        if place == "loop._evaluate" and "trained" not in args:
            return real(*args, **more)
        if place == "Run.append" and args[2].get("name") != "trained":
            return real(*args, **more)
        if place == "Run.write" and args[1] != "result.json":
            return real(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(holder, name, kill)


@pytest.mark.parametrize(
    "place",
    [
        "loop._evaluate",  # the last checkpoint is there
        "Run.append",  # completions-trained.jsonl too, and no line in evaluations.jsonl
        "metrics.make_result",
        "anatomy.measure",
        "anatomy.summary",  # anatomy.json is there
        "Tracker.finish",
        "Run.write",  # all but the result
    ],
)
def test_a_kill_at_the_very_end_costs_nothing(
    place: str, config: TrainConfig, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at(place, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    folder = Path(config.out)
    assert not (folder / "result.json").exists()
    found = train(config, resume=True)
    assert left(folder) == whole
    assert found["anatomy"] == whole["result"]["anatomy"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory\nTry ...")])
def test_trouble_with_the_anatomy_does_not_cost_the_result(
    error: Exception, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(anatomy, "measure", fail)
    found = train(config, Listener())
    kept = json.loads((Path(config.out) / "result.json").read_text())
    assert "anatomy" not in kept and kept == json.loads(json.dumps(found))
    reason = "CUDA out of memory" if str(error) else "MemoryError"
    assert notes[-1] == f"the run has no anatomy: {reason}"


# Names of folders ------------------------------------------------------------------------


def test_a_link_to_a_run_is_the_run(bare: TrainConfig, tmp_path: Path) -> None:
    train(bare)
    link = tmp_path / "link"
    link.symlink_to("run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    (Path(bare.out) / "out").symlink_to(tmp_path / "elsewhere")
    train(replace(bare, seed=3, out=str(link)), overwrite=True)
    assert link.is_symlink()
    assert runs.read_object(tmp_path / "run" / "result.json")["seed"] == 3
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "out").exists()


@pytest.mark.parametrize(
    "how", [("train",), ("train", "--overwrite"), ("train", "--resume"), ("demo",), ("scan",)]
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("link", "link is a link to nothing (nowhere)"),
        ("link/run", "link is a link to nothing (nowhere)"),
        ("file.txt", "file.txt is "),
        ("file.txt/run", "file.txt is a file, not a folder"),
        ("x" * 300, "File name too long"),
        ("loop", "loop is a link to nothing (loop)"),
    ],
)
def test_a_folder_that_cannot_be_is_one_line(
    how: tuple[str, ...], name: str, text: str, fails: Fails, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file.txt").write_text("mine")
    before = sorted(tmp_path.iterdir())
    message = fails(*how, "--out", tmp_path / name)
    assert text in message
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_may_not_be_written_is_found_before_a_model_is_loaded(
    bare: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(bare)
    closed = [Path(bare.out), tmp_path]
    monkeypatch.setattr(os, "access", lambda path, mode: path not in closed)
    monkeypatch.setattr(loop.origin, "prepare_like", lambda *_: pytest.fail("a model was loaded"))
    for out, how in ((bare.out, {"overwrite": True}), (str(tmp_path / "new" / "run"), {})):
        place = out if how else tmp_path
        with pytest.raises(FolderError, match=f"^{place} cannot be written: Permission denied$"):
            train(replace(bare, out=out), **how)


def test_a_kill_while_the_first_file_is_written_leaves_an_empty_folder(bare: TrainConfig) -> None:
    """And what a kill left beside another file goes when the run goes on."""
    folder = Path(bare.out)
    folder.mkdir()
    (folder / ".config.toml.tmp").write_text("model = ")
    with pytest.raises(RunInterrupted):
        train(bare, Signals(signal.SIGTERM, "after step 3"))
    (folder / ".samples.jsonl.tmp").write_text("{")
    (folder / ".mine.tmp").write_text("mine")
    train(bare, resume=True)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == [".mine.tmp"]


def test_a_folder_is_cleared_but_for_its_lock(tmp_path: Path) -> None:
    """What makes it known for a run or a model goes last."""
    gone: list[str] = []
    for name in ("config.toml", "result.json", "a/b", ".lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    real = Path.unlink
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path: (gone.append(path.name), real(path)))
        disk.clear_folder(tmp_path)
    assert gone == ["result.json", "config.toml"]
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    (tmp_path / "x").touch()
    denied = PermissionError(errno.EACCES, "Permission denied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path: (_ for _ in ()).throw(denied))
        with pytest.raises(UserError, match="cannot be written: Permission denied"):
            disk.clear_folder(tmp_path)


# A terminal that was closed --------------------------------------------------------------


def test_what_cannot_be_shown_does_not_end_a_run(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

        def flush(self) -> None:
            raise OSError(errno.EIO, "Input/output error")

    from modicum.display import Display

    monkeypatch.setattr(sys, "stderr", Closed())
    with Display() as display:
        assert train(bare, display)["steps"] == 4
