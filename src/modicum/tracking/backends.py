"""The four trackers, each offline unless the settings say otherwise.

TensorBoard: event files by the package's own record writer, in this thread: its asynchronous
    writer would report a full disk from another thread, and torch's needs torch.
W&B: its offline mode, with all collection switched off.
Trackio: its SQLite database; MLflow: a SQLite store, since its file store is closed.
"""

import contextlib
import fcntl
import importlib
import io
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum import runs
from modicum.tracking.base import Backend, Start

PARAMS_PER_CALL = 100  # the most that MLflow takes
# Offline, W&B keeps what is logged: no output, code, commit, packages or machine. It is silent,
# since what it prints is about its servers.
WANDB_OFFLINE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "silent": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,  # seconds; what a killed process may lose
}


@dataclass(frozen=True)
class Library:
    """How a tracker begins, what it imports, and the variables that name its server."""

    begin: Callable[[Start], Backend]
    modules: tuple[str, ...]
    servers: tuple[str, ...] = ()
    has_online: bool = True


def _load(name: str) -> Any:
    """A module of a library that may be missing where types are checked."""
    return importlib.import_module(name)


class TensorBoard:
    """Event files in RUN/tensorboard; a resumed run purges the steps that it takes again."""

    def __init__(self, start: Start) -> None:
        self.events = _load("tensorboard.compat.proto.event_pb2")
        self.summaries = _load("tensorboard.compat.proto.summary_pb2")
        records = _load("tensorboard.summary.writer.record_writer")
        hparams = _load("tensorboard.plugins.hparams.summary_v2")
        folder = start.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        # Files are read in the order of their names.
        count = len(list(folder.iterdir()))
        name = f"events.out.tfevents.{time.time():010.0f}.{count:04}.{socket.gethostname()}"
        self.writer = records.RecordWriter((folder / name).open("wb"))
        self.id = start.name
        self._write(file_version="brain.Event:2")
        if start.past is None:
            self._write(summary=hparams.hparams_pb(dict(start.config), trial_id=start.name))
        else:
            log = self.events.SessionLog
            self._write(session_log=log(status=log.START), step=start.resumed_at + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        value = self.summaries.Summary.Value
        entries = [value(tag=name, simple_value=number) for name, number in values.items()]
        self._write(summary=self.summaries.Summary(value=entries), step=step)

    def close(self, failed: bool) -> None:
        self.writer.close()

    def _write(self, **fields: Any) -> None:
        event = self.events.Event(wall_time=time.time(), **fields)
        self.writer.write(event.SerializeToString())
        self.writer.flush()


class Logs:
    """A run of a library whose `log` takes a step's numbers; what has one step is one row."""

    run: Any

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)


class WandB(Logs):
    """A run in RUN/wandb, for `wandb sync`; online, the library's own settings hold."""

    def __init__(self, start: Start) -> None:
        online = start.settings.tracker_online
        if not online:
            os.environ["WANDB_ERROR_REPORTING"] = "false"  # read at import
        wandb = _load("wandb")
        self.run = wandb.init(
            project=start.settings.tracker_project,
            name=start.name,
            id=start.past,
            resume="allow" if start.past else None,
            dir=str(start.folder),
            config=dict(start.config),
            mode=None if online else "offline",
            reinit="create_new",
            settings=None if online else wandb.Settings(**WANDB_OFFLINE),
        )
        self.id = str(self.run.id)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Trackio(Logs):
    """A run in a local Trackio database; online, in the Space or server that is set."""

    def __init__(self, start: Start) -> None:
        online = start.settings.tracker_online
        with contextlib.nullcontext() if online else _trackio_offline(start.store / "trackio"):
            self.trackio = _load("trackio")
            with contextlib.redirect_stdout(io.StringIO()):
                self.run = self.trackio.init(
                    project=start.settings.tracker_project,
                    name=start.name,
                    config=dict(start.config),
                    resume="allow" if start.past else "never",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        self.id = str(self.run.id)

    def close(self, failed: bool) -> None:
        """Finish the run, waiting for the thread."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.trackio.finish()


@contextlib.contextmanager
def _trackio_offline(folder: Path) -> Iterator[None]:
    """Trackio begins without a server, without asking the hub who we are, in `folder`."""
    runs.make_folder(folder)
    hub = _load("huggingface_hub.constants")
    names = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DIR")
    before = {name: os.environ.pop(name, None) for name in names}
    was_offline, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    os.environ["TRACKIO_DIR"] = str(folder)
    try:
        # Trackio reads TRACKIO_DIR once; a later run of this process has another folder.
        for name in ("trackio.utils", "trackio.sqlite_storage"):
            _load(name).TRACKIO_DIR = folder
        yield
    finally:
        hub.HF_HUB_OFFLINE = was_offline
        del os.environ["TRACKIO_DIR"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


class MLflow:
    """A run in a SQLite store; online, on the server that is set."""

    def __init__(self, start: Start) -> None:
        online = start.settings.tracker_online
        if not online:
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read at import
        self.entities = _load("mlflow.entities")
        # After the import, which sets levels. What MLflow logs with a traceback it also raises.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if online:
            self._begin(start, None, None)
            return
        runs.make_folder(start.store)
        # Processes that make one store at the same time would fail.
        with (start.store / "mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            artifacts = (start.store / "mlartifacts").as_uri()
            self._begin(start, f"sqlite:///{start.store / 'mlflow.db'}", artifacts)

    def _begin(self, start: Start, uri: str | None, artifacts: str | None) -> None:
        self.client = _load("mlflow.tracking").MlflowClient(tracking_uri=uri, registry_uri=uri)
        if start.past is not None:
            self.id = start.past
            self.client.update_run(self.id, status="RUNNING")
            return
        project = start.settings.tracker_project
        found = self.client.get_experiment_by_name(project)
        number = (
            found.experiment_id
            if found
            else self.client.create_experiment(project, artifact_location=artifacts)
        )
        self.id = str(self.client.create_run(number, run_name=start.name).info.run_id)
        params = [self.entities.Param(name, str(value)) for name, value in start.config.items()]
        for first in range(0, len(params), PARAMS_PER_CALL):
            self.client.log_batch(self.id, params=params[first : first + PARAMS_PER_CALL])

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metric = self.entities.Metric
        metrics = [metric(name, number, now, step) for name, number in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")


LIBRARIES = {
    "tensorboard": Library(TensorBoard, ("tensorboard",), has_online=False),
    "wandb": Library(WandB, ("wandb",)),
    "trackio": Library(Trackio, ("trackio",), ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")),
    "mlflow": Library(MLflow, ("mlflow", "sqlalchemy", "alembic"), ("MLFLOW_TRACKING_URI",)),
}
