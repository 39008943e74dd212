"""One contract for every tracker: against a fake of its library, and the real one if it is here.

Expected points are written out by hand; the real libraries' files are read back by their own
readers (for W&B, whose package reads none, by the record format and its protobuf).
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import fake_trackers
from fake_trackers import FAKES, Run, Store
from modicum import tracking
from modicum.config import Tracking, TrainConfig
from modicum.tracking import failure, hyperparameters, numbers
from modicum.tracking.backends import LIBRARIES
from modicum.types import UserError

NAMES = tuple(LIBRARIES)
BASE = {"step": -1, "name": "base", "accuracy": 0.25, "num_problems": 8, "ids": ["a"], "low": None}
TRAINED = {"step": 2, "name": "trained", "accuracy": 0.75, "pass_at": {"4": [0.5, 0.4, 0.6]}}
# Halves and quarters, which TensorBoard's 32 bits hold exactly.
EXPECTED = {
    ("eval/accuracy", 0, 0.25),
    ("reward/mean", 1, 0.0),
    ("reward/mean", 2, 0.25),
    ("reward/mean", 3, 0.5),
    ("policy/kl", 2, 2.0),
    ("eval/accuracy", 3, 0.75),
    ("eval/pass_at_4", 3, 0.5),
    ("result/seconds", 3, 8.5),
}


@dataclass
class World:
    """A tracker, how its runs are read back, and the fake's store if it is one."""

    name: str
    read: Callable[[Path], list[Run]]
    store: Store | None

    def open(self, folder: Path, resumed_at: int = 0, **settings: Any) -> tracking.Tracker:
        folder.mkdir(exist_ok=True)
        config = replace(TrainConfig(), tracking=Tracking(tracker=self.name, **settings))  # type: ignore[arg-type]
        notes = pytest.fail
        return tracking.open(
            config.tracking, folder, folder.name, asdict(config), resumed_at, notes
        )


def step(number: int) -> dict[str, Any]:
    kl = 2.0 if number == 1 else float("nan")
    return {"step": number, "reward/mean": number / 4, "policy/kl": kl, "reward/none": None}


# Reading what the real libraries wrote ---------------------------------------------------


def real_tensorboard(folder: Path) -> list[Run]:
    loader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    data = importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    events = loader.EventAccumulator(str(folder / "tensorboard")).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    info = data.HParamsPluginData.FromString(content).session_start_info
    config = {k: getattr(v, v.WhichOneof("kind")) for k, v in info.hparams.items()}
    tags = events.Tags()["scalars"]
    points = [(tag, e.step, e.value) for tag in tags for e in events.Scalars(tag)]
    return [Run("", "", "", config, points)]


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def real_wandb(folder: Path) -> list[Run]:
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
    importlib.import_module("wandb").teardown()  # as at exit: its process writes what is left
    found: dict[str, Run] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run = Run("", "", "", {})
        for data in wandb_records(path):
            record = proto.Record.FromString(data)
            match record.WhichOneof("record_type"):
                case "run":
                    name = record.run.run_id
                    fresh = Run(name, record.run.display_name, record.run.project, {})
                    run = found.setdefault(name, fresh)
                    run.config |= {
                        c.key: json.loads(c.value_json) for c in record.run.config.update
                    }
                case "history":
                    row = {i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                    at = row["_step"]
                    run.points += [(k, at, v) for k, v in row.items() if k[0] != "_"]
                case "exit":
                    run.status = "failed" if record.exit.exit_code else "finished"
    return list(found.values())


def real_trackio(folder: Path) -> list[Run]:
    with sqlite3.connect(folder / "trackio" / "modicum.db") as database:
        configs = dict(database.execute("select run_id, config from configs").fetchall())
        rows = database.execute("select run_id, run_name, step, metrics from metrics").fetchall()
    found: dict[str, Run] = {}
    for number, name, at, metrics in rows:
        run = found.setdefault(number, Run(number, name, "modicum", json.loads(configs[number])))
        run.points += [(key, at, value) for key, value in json.loads(metrics).items()]
    return list(found.values())


def real_mlflow(folder: Path) -> list[Run]:
    client = importlib.import_module("mlflow.tracking").MlflowClient(
        f"sqlite:///{folder}/mlflow.db"
    )
    number = client.get_experiment_by_name("modicum").experiment_id
    found = []
    for run in client.search_runs([number]):
        run_id = run.info.run_id
        points = [
            (name, m.step, m.value)
            for name in run.data.metrics
            for m in client.get_metric_history(run_id, name)
        ]
        status = run.info.status.lower()
        found.append(Run(run_id, run.info.run_name, "modicum", run.data.params, points, status))
    return found


REAL = {
    "tensorboard": real_tensorboard,
    "wandb": real_wandb,
    "trackio": real_trackio,
    "mlflow": real_mlflow,
}


# What real libraries warn of is theirs; MLflow takes seconds to make a database.
MARKS = {name: [pytest.mark.filterwarnings("ignore")] for name in NAMES}
MARKS["mlflow"].append(pytest.mark.slow)


@pytest.fixture(
    params=[
        *(pytest.param((name, "fake"), id=f"{name}-fake") for name in NAMES),
        *(pytest.param((name, "real"), id=f"{name}-real", marks=MARKS[name]) for name in NAMES),
    ]
)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    """Every tracker, fake and real; no connection can be made but to a local socket."""
    name, kind = request.param
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, f"{name} connects to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    # What would take these libraries online, were they asked.
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.invalid")
    if kind == "real":
        for module in LIBRARIES[name].modules:
            pytest.importorskip(module)
        return World(name, REAL[name], None)
    store = fake_trackers.install(name, monkeypatch)
    return World(name, lambda folder: fake_trackers.READERS[name](folder, store), store)


# The contract ----------------------------------------------------------------------------


def test_a_whole_run(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with world.open(tmp_path / "run") as tracker:
        tracker.evaluated(BASE)
        for number in range(3):
            tracker.step(step(number))
        tracker.evaluated(TRAINED)
        tracker.finish({"seconds": 8.5, "seed": 3, "update": "full", "base": {"accuracy": 0.25}})
    (run,) = world.read(tmp_path / "run")
    assert sorted(run.points) == sorted(EXPECTED)
    assert float(run.config["sampling.temperature"]) == 1.0
    assert run.config["update"] == "full"
    assert "optimizer.learning_rate" not in run.config, "None is left out"
    if world.name != "tensorboard":
        assert (run.name, run.project) == ("run", "modicum")
    if world.name in ("wandb", "mlflow"):
        assert run.status == "finished"
    assert capfd.readouterr().out == "", "standard output is the result's"


def test_a_run_that_ends_with_an_error_is_failed(world: World, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), world.open(tmp_path / "run") as tracker:
        tracker.step(step(0))
        raise KeyboardInterrupt
    (run,) = world.read(tmp_path / "run")
    assert run.points == [("reward/mean", 1, 0.0)]
    if world.name in ("wandb", "mlflow"):
        assert run.status == "failed"


def test_a_resumed_run_goes_on_with_the_trackers_run(world: World, tmp_path: Path) -> None:
    with world.open(tmp_path / "run") as tracker:
        tracker.evaluated(BASE)
        for number in range(3):
            tracker.step({"step": number, "reward/mean": number / 4})
    record = json.loads((tmp_path / "run" / "tracker.json").read_text())
    with world.open(tmp_path / "run", resumed_at=2) as tracker:
        for number in (2, 3):
            tracker.step({"step": number, "reward/mean": number / 4})
    assert json.loads((tmp_path / "run" / "tracker.json").read_text()) == record
    (run,) = world.read(tmp_path / "run")
    assert run.id in (record["id"], "")
    steps = sorted(at for name, at, _ in run.points if name == "reward/mean")
    # Step 3 was taken twice: TensorBoard purges the first, the others keep both.
    assert steps == ([1, 2, 3, 4] if world.name == "tensorboard" else [1, 2, 3, 3, 4])
    assert ("eval/accuracy", 0, 0.25) in run.points


def test_runs_of_one_process_stay_apart(world: World, tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        with world.open(tmp_path / name) as tracker:
            tracker.step({"step": number, "reward/mean": 0.5})
    read = {name: world.read(tmp_path / name) for name in ("one", "two")}
    if world.store is not None and world.name != "tensorboard":
        runs = read["one"]  # a fake has one store
    else:
        runs = [*read["one"], *read["two"]]
    assert [run.points for run in runs] == [[("reward/mean", n, 0.5)] for n in (1, 2)]


def test_runs_can_share_a_store(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    world = World("trackio", real_trackio, None)
    for name in ("one", "two"):
        with world.open(tmp_path / name, tracker_folder=str(tmp_path)) as tracker:
            tracker.step({"step": 0, "reward/mean": 0.5})
    assert sorted(run.name for run in real_trackio(tmp_path)) == ["one", "two"]


def test_environment_is_as_it_was(world: World, tmp_path: Path) -> None:
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    with world.open(tmp_path / "run"):
        assert os.environ["TRACKIO_SPACE_ID"] == "someone/space"
        assert "TRACKIO_DIR" not in os.environ
        assert offline == constants.HF_HUB_OFFLINE
    for run in (world.store or Store()).runs.values():
        assert run.started.get("server") is None
        assert run.started.get("mode", "offline") == "offline"
        assert run.started.get("hub_offline", True)
        assert run.started.get("uri", "sqlite:").startswith("sqlite:")
        assert run.started.get("dir", str(tmp_path / "run")) in (
            str(tmp_path / "run"),
            tmp_path / "run" / "trackio",
        )


# What can go wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[name].modules[-1], None)
    message = rf"needs the package {LIBRARIES[name].modules[-1]}.*pip install 'modicum\[{name}\]'$"
    for module in LIBRARIES[name].modules[:-1]:
        monkeypatch.setitem(sys.modules, module, fake_spec(module))
    settings = Tracking(tracker=name)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        tracking.check(settings)
    with pytest.raises(UserError, match=message):
        tracking.open(settings, tmp_path, "run", {}, 0, pytest.fail)
    assert not list(tmp_path.iterdir())


def fake_spec(name: str) -> Any:
    module = type(sys)(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_does_not_end_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, notes = fake_trackers.install(name, monkeypatch), list[str]()
    settings = Tracking(tracker=name)  # type: ignore[arg-type]
    tracker = tracking.open(settings, tmp_path, "run", {}, 0, notes.append)
    tracker.step(step(0))
    store.fault = OSError(28, "No space left on device")
    tracker.step(step(1))
    store.fault = None
    tracker.step(step(2))
    tracker.finish({"seconds": 1.0})
    assert notes == [
        f"{name} failed, and the run goes on without it (OSError: [Errno 28] No space left on device)"
    ]
    (run,) = fake_trackers.READERS[name](tmp_path, store)
    assert run.points == [("reward/mean", 1, 0.0)]


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    resource = pytest.importorskip("resource")
    notes: list[str] = []
    tracker = tracking.open(Tracking(tracker="tensorboard"), tmp_path, "run", {}, 0, notes.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        tracker.step(step(0))
        tracker.finish({})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(notes) == 1 and "File too large" in notes[0]


def test_what_is_a_failure_of_a_library() -> None:
    def raising(error: BaseException) -> Callable[[], None]:
        def call() -> None:
            raise error

        return call

    own = type("Error", (Exception,), {"__module__": "wandb.errors"})
    for error in (own("gone"), OSError("disk"), ImportError("x"), RuntimeError("x")):
        assert failure(("wandb",), raising(error)) == f"{type(error).__name__}: {error}"
    for error in (TypeError("ours"), UserError("ours"), KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(error)):
            failure(("wandb",), raising(error))
    with pytest.raises(own):
        failure(("mlflow",), raising(own("another's")))
    reason = failure((), raising(OSError("first line\n" + "x" * 1000)))
    assert "\n" not in reason and len(reason) < 400
    assert failure((), raising(OSError())) == "OSError"
    assert failure((), int) == ""


def test_a_tracker_that_cannot_begin_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_trackers.install("tensorboard", monkeypatch)
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(
        UserError, match=r"^tracker tensorboard cannot begin \(FileExistsError.*\)$"
    ):
        tracking.open(Tracking(tracker="tensorboard"), tmp_path, "run", {}, 0, pytest.fail)
    assert not (tmp_path / "tracker.json").exists()


def test_a_damaged_record_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_trackers.install("wandb", monkeypatch)
    for text in ("{", "[]", "{}"):
        (tmp_path / "tracker.json").write_text(text)
        with pytest.raises(UserError, match=r"tracker\.json is damaged; without it"):
            tracking.open(Tracking(tracker="wandb"), tmp_path, "run", {}, 0, pytest.fail)


def test_another_tracker_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fake_trackers.install("wandb", monkeypatch)
    (tmp_path / "tracker.json").write_text('{"tracker": "mlflow", "id": "7"}')
    tracking.open(Tracking(tracker="wandb"), tmp_path, "run", {}, 5, pytest.fail).finish({})
    assert list(store.runs) == ["id0"]


def test_online_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        fake_trackers.install(name, monkeypatch)
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def check(name: Any) -> None:
        tracking.check(Tracking(tracker=name, tracker_online=True))

    with pytest.raises(UserError, match="tensorboard only writes files"):
        check("tensorboard")
    with pytest.raises(UserError, match="TRACKIO_SPACE_ID or TRACKIO_SERVER_URL"):
        check("trackio")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        check("mlflow")
    check("wandb")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://localhost:7860")
    check("trackio")


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_online_leaves_the_library_its_settings(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://localhost:7860")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    store = fake_trackers.install(name, monkeypatch)
    settings = Tracking(tracker=name, tracker_online=True)
    tracking.open(settings, tmp_path, "run", {}, 0, pytest.fail).finish({})
    (run,) = store.runs.values()
    assert run.started.get("mode") is None
    assert run.started.get("settings") is None
    assert run.started.get("uri") is None
    assert run.started.get("server", "http://localhost:7860") == "http://localhost:7860"


# Small parts -----------------------------------------------------------------------------


def test_none_does_nothing(tmp_path: Path) -> None:
    with tracking.open(Tracking(), tmp_path, "run", {}, 0, pytest.fail) as tracker:
        tracker.evaluated(BASE)
        tracker.step(step(0))
        tracker.finish({"seconds": 1.0})
    assert not list(tmp_path.iterdir())


def test_every_choice_has_a_library_and_a_fake() -> None:
    choices = set(get_args(get_type_hints(Tracking)["tracker"])) - {"none"}
    assert choices == set(LIBRARIES) == set(FAKES) == set(REAL)


def test_hyperparameters_and_numbers() -> None:
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": "x", "f": True, "g": [1, 2]}
    assert hyperparameters(nested) == {"a.b.c": 1, "e": "x", "f": True, "g": "[1, 2]"}
    values = {"a": 1, "b": True, "c": float("inf"), "d": "1", "e": -0.5, "step": 3}
    assert numbers(values, "x/") == {"x/a": 1.0, "x/e": -0.5}
