"""The four trackers, each offline unless the settings say otherwise.

TensorBoard's files are written in this thread: its asynchronous writer would report a full disk
from another, and torch's needs torch. MLflow has a SQLite store, since its file store is closed."""

import contextlib
import io
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module as load
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from filelock import FileLock

from modicum import runs
from modicum.config import Tracking

PARAMS_PER_CALL = 100  # the most that MLflow takes
# Offline, W&B keeps what is logged: no output, code, commit, packages or machine. It is silent,
# since what it prints is about its servers.
WANDB_OFF = ("disable_code", "disable_git", "silent", "x_disable_machine_info", "x_disable_meta")
WANDB_OFFLINE: dict[str, Any] = dict.fromkeys((*WANDB_OFF, "x_disable_stats"), True)
WANDB_OFFLINE |= {"console": "off", "save_code": False, "x_save_requirements": False}
WANDB_OFFLINE["x_transaction_log_flush_interval"] = 1.0  # seconds; what a killed process may lose


class Start(NamedTuple):
    """What a backend begins with: the absolute run folder, a flat config, a run that goes on."""

    settings: Tracking
    folder: Path
    name: str
    config: Mapping[str, Any]
    past: str | None
    resumed_at: int

    @property
    def store(self) -> Path:
        """The absolute folder of a store that several runs may share."""
        return Path(self.settings.tracker_folder or self.folder).absolute()


class Backend(NamedTuple):
    """A run of a tracker: `id` finds it, `log` takes values and `step=`, `close` whether it failed."""

    id: str
    log: Callable[..., object]
    close: Callable[[bool], object]


class Library(NamedTuple):
    """How a tracker begins, what it imports, and the variables that name its server."""

    begin: Callable[[Start], Backend]
    modules: tuple[str, ...]
    servers: tuple[str, ...] = ()
    has_online: bool = True


def tensorboard(start: Start) -> Backend:
    """Event files in RUN/tensorboard; a resumed run purges the steps that it takes again."""
    events = load("tensorboard.compat.proto.event_pb2")
    summary = load("tensorboard.compat.proto.summary_pb2").Summary
    records = load("tensorboard.summary.writer.record_writer")
    hparams = load("tensorboard.plugins.hparams.summary_v2")
    folder = start.folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    # Files are read in the order of their names.
    count = len(list(folder.iterdir()))
    name = f"events.out.tfevents.{time.time():010.0f}.{count:04}.{socket.gethostname()}"
    writer = records.RecordWriter((folder / name).open("wb"))

    def write(**fields: Any) -> None:
        writer.write(events.Event(wall_time=time.time(), **fields).SerializeToString())
        writer.flush()

    def log(values: Mapping[str, float], step: int) -> None:
        entries = [summary.Value(tag=name, simple_value=v) for name, v in values.items()]
        write(summary=summary(value=entries), step=step)

    write(file_version="brain.Event:2")
    if start.past is None:
        write(summary=hparams.hparams_pb(dict(start.config), trial_id=start.name))
    else:
        begun = events.SessionLog(status=events.SessionLog.START)
        write(session_log=begun, step=start.resumed_at + 1)
    return Backend(start.name, log, lambda failed: writer.close())


def wandb(start: Start) -> Backend:
    """A run in RUN/wandb, for `wandb sync`; online, the library's own settings hold."""
    if not (online := start.settings.tracker_online):
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # read at import
    library = load("wandb")
    run = library.init(
        project=start.settings.tracker_project,
        name=start.name,
        id=start.past,
        resume="allow" if start.past else None,
        dir=str(start.folder),
        config=dict(start.config),
        mode=None if online else "offline",
        reinit="create_new",
        settings=None if online else library.Settings(**WANDB_OFFLINE),
    )
    return Backend(str(run.id), run.log, lambda failed: run.finish(exit_code=int(failed)))


def trackio(start: Start) -> Backend:
    """A run in a local Trackio database; online, in the Space or server that is set."""
    online = start.settings.tracker_online
    with contextlib.nullcontext() if online else _trackio_offline(start.store / "trackio"):
        library = load("trackio")
        with contextlib.redirect_stdout(io.StringIO()):
            run = library.init(
                project=start.settings.tracker_project,
                name=start.name,
                config=dict(start.config),
                resume="allow" if start.past else "never",
                **dict.fromkeys(("embed", "auto_log_gpu", "auto_log_cpu"), False),
            )

    def close(failed: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            library.finish()  # waits for the thread

    return Backend(str(run.id), run.log, close)


@contextlib.contextmanager
def _trackio_offline(folder: Path) -> Iterator[None]:
    """Trackio begins without a server, without asking the hub who we are, in `folder`."""
    runs.make_folder(folder)
    hub: Any = load("huggingface_hub.constants")
    names = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DIR")
    with patch.dict(os.environ), patch.object(hub, "HF_HUB_OFFLINE", True):
        for name in names:
            os.environ.pop(name, None)
        os.environ["TRACKIO_DIR"] = str(folder)
        # Trackio reads TRACKIO_DIR once; a later run of this process has another folder.
        for name in ("trackio.utils", "trackio.sqlite_storage"):
            vars(load(name))["TRACKIO_DIR"] = folder
        yield


def mlflow(start: Start) -> Backend:
    """A run in a SQLite store; online, on the server that is set."""
    if not (online := start.settings.tracker_online):
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read at import
    entities, tracking = load("mlflow.entities"), load("mlflow.tracking")
    # After the import, which sets levels. What MLflow logs with a traceback it also raises.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = artifacts = None
    # Processes that make one store at the same time would fail.
    lock = contextlib.nullcontext()
    if not online:
        runs.make_folder(start.store)
        uri, artifacts = f"sqlite:///{start.store / 'mlflow.db'}", start.store / "mlartifacts"
        lock = FileLock(start.store / "mlflow.lock")
    with lock:
        client = tracking.MlflowClient(tracking_uri=uri, registry_uri=uri)
        if run := start.past:
            client.update_run(run, status="RUNNING")
        else:
            project, place = start.settings.tracker_project, artifacts and artifacts.as_uri()
            found = client.get_experiment_by_name(project)
            number = found.experiment_id if found else client.create_experiment(project, place)
            run = str(client.create_run(number, run_name=start.name).info.run_id)
            params = [entities.Param(name, str(value)) for name, value in start.config.items()]
            for first in range(0, len(params), PARAMS_PER_CALL):
                client.log_batch(run, params=params[first : first + PARAMS_PER_CALL])

    def log(values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [entities.Metric(name, number, now, step) for name, number in values.items()]
        client.log_batch(run, metrics=metrics)

    ends = ("FINISHED", "FAILED")
    return Backend(run, log, lambda failed: client.set_terminated(run, status=ends[failed]))


LIBRARIES = {
    "tensorboard": Library(tensorboard, ("tensorboard",), has_online=False),
    "wandb": Library(wandb, ("wandb",)),
    "trackio": Library(trackio, ("trackio",), ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")),
    "mlflow": Library(mlflow, ("mlflow", "sqlalchemy", "alembic"), ("MLFLOW_TRACKING_URI",)),
}
