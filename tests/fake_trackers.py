"""Small stand-ins for the trackers' libraries, with the calls that modicum makes of them.

Each keeps what it was told where the real one does: TensorBoard's in event files (here JSON
lines), the others' in a `Store`. Signatures are those of the real ones, so that a call with
another name fails here too.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Run:
    """A run of a fake tracker."""

    id: str
    name: str
    project: str
    config: dict[str, Any]
    points: list[tuple[str, int, float]] = field(default_factory=list)
    status: str = "running"
    started: dict[str, Any] = field(default_factory=dict)


@dataclass
class Store:
    """The runs of a fake tracker, and what its next call raises."""

    runs: dict[str, Run] = field(default_factory=dict)
    fault: Exception | None = None

    def begin(self, name: str, project: str, config: Mapping[str, Any], **more: Any) -> Run:
        run = Run(f"id{len(self.runs)}", name, project, dict(config), started=more)
        self.runs[run.id] = run
        return run

    def log(self, run: Run, values: Mapping[str, float], step: int) -> None:
        if self.fault is not None:
            raise self.fault
        run.points += [(name, step, value) for name, value in values.items()]


def install(tracker: str, patch: pytest.MonkeyPatch) -> Store:
    """Put the fake of a tracker in the place of its library, for one test."""
    store = Store()
    for name in [n for n in sys.modules if n.partition(".")[0] == tracker]:
        patch.delitem(sys.modules, name)
    for name, members in FAKES[tracker](store).items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__.update(members)
        patch.setitem(sys.modules, name, module)
    return store


def tensorboard(store: Store) -> dict[str, dict[str, Any]]:
    class Message:
        def __init__(self, **fields: Any) -> None:
            self.fields = fields

        def plain(self) -> dict[str, Any]:
            return {k: _plain(v) for k, v in self.fields.items()}

        def SerializeToString(self) -> bytes:
            return json.dumps(self.plain()).encode() + b"\n"

    class SessionLog(Message):
        START = 1

    class Summary(Message):
        Value = Message

    class RecordWriter:
        def __init__(self, file: Any) -> None:
            self.file = file
            self.flush, self.close = file.flush, file.close

        def write(self, data: bytes) -> None:
            if store.fault is not None:
                raise store.fault
            self.file.write(data)

    def hparams_pb(hparams: dict[str, Any], trial_id: str | None = None) -> Message:
        return Message(hparams=hparams, trial_id=trial_id)

    return {
        "tensorboard": {},
        "tensorboard.compat.proto.event_pb2": {"Event": Message, "SessionLog": SessionLog},
        "tensorboard.compat.proto.summary_pb2": {"Summary": Summary},
        "tensorboard.summary.writer.record_writer": {"RecordWriter": RecordWriter},
        "tensorboard.plugins.hparams.summary_v2": {"hparams_pb": hparams_pb},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.plain() if hasattr(value, "plain") else value


def read_tensorboard(folder: Path, store: Store) -> list[Run]:
    """What a reader of the fake's event files sees, purged steps left out."""
    run = Run("", "", "", {})
    for path in sorted((folder / "tensorboard").iterdir()):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if "session_log" in event:
                run.points = [p for p in run.points if p[1] < event["step"]]
            summary = event.get("summary", {})
            run.config |= summary.get("hparams", {})
            run.points += [
                (v["tag"], event["step"], v["simple_value"]) for v in summary.get("value", [])
            ]
    return [run]


def wandb(store: Store) -> dict[str, dict[str, Any]]:
    class Logging:
        def __init__(self, run: Run) -> None:
            self.run, self.id = run, run.id

        def log(self, data: dict[str, Any], step: int | None = None) -> None:
            assert step is not None and step >= 0
            store.log(self.run, data, step)

        def finish(self, exit_code: int | None = None) -> None:
            self.run.status = "failed" if exit_code else "finished"

    def init(
        project: str,
        name: str,
        id: str | None,
        resume: str | None,
        dir: str,
        config: dict[str, Any],
        mode: str | None,
        reinit: str,
        settings: dict[str, Any] | None,
    ) -> Logging:
        if id is not None:
            assert resume == "allow"
            return Logging(store.runs[id])
        started = {"mode": mode, "dir": dir, "settings": settings}
        return Logging(store.begin(name, project, config, **started))

    return {"wandb": {"init": init, "Settings": dict}}


def trackio(store: Store) -> dict[str, dict[str, Any]]:
    current: list[Run] = []

    class Logging:
        def __init__(self, run: Run) -> None:
            self.run, self.id = run, run.id

        def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
            assert step is not None
            store.log(self.run, metrics, step)

    def init(
        project: str,
        name: str,
        config: dict[str, Any],
        resume: str,
        embed: bool,
        auto_log_gpu: bool,
        auto_log_cpu: bool,
    ) -> Logging:
        from huggingface_hub import constants

        print("* Trackio talks on standard output")
        found = [run for run in store.runs.values() if run.name == name]
        if resume == "never" or not found:
            server = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
            started = {
                "server": server,
                "hub_offline": constants.HF_HUB_OFFLINE,
                "dir": sys.modules["trackio.utils"].TRACKIO_DIR,
            }
            found = [store.begin(name, project, config, **started)]
        current.append(found[-1])
        return Logging(found[-1])

    def finish() -> None:
        print("* Trackio talks on standard output")
        current.pop().status = "finished"

    return {
        "trackio": {"init": init, "finish": finish},
        "trackio.utils": {"TRACKIO_DIR": None},
        "trackio.sqlite_storage": {"TRACKIO_DIR": None},
    }


def mlflow(store: Store) -> dict[str, dict[str, Any]]:
    @dataclass
    class Metric:
        key: str
        value: float
        timestamp: int
        step: int

    @dataclass
    class Param:
        key: str
        value: str

    class MlflowClient:
        def __init__(
            self, tracking_uri: str | None = None, registry_uri: str | None = None
        ) -> None:
            self.uri = tracking_uri
            self.projects: dict[str, str] = {}

        def get_experiment_by_name(self, name: str) -> Any:
            return None

        def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
            self.projects["1"] = name
            return "1"

        def create_run(self, experiment_id: str, run_name: str | None = None) -> Any:
            run = store.begin(run_name or "", self.projects[experiment_id], {}, uri=self.uri)
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run.id))

        def update_run(self, run_id: str, status: str | None = None) -> None:
            store.runs[run_id].status = str(status)

        def log_batch(
            self,
            run_id: str,
            metrics: Sequence[Metric] = (),
            params: Sequence[Param] = (),
        ) -> None:
            assert len(params) <= 100
            run = store.runs[run_id]
            run.config |= {p.key: p.value for p in params}
            for m in metrics:
                store.log(run, {m.key: m.value}, m.step)

        def set_terminated(self, run_id: str, status: str | None = None) -> None:
            store.runs[run_id].status = str(status).lower()

    return {
        "mlflow": {},
        "mlflow.entities": {"Metric": Metric, "Param": Param},
        "mlflow.tracking": {"MlflowClient": MlflowClient},
        "sqlalchemy": {},
        "alembic": {},
    }


FAKES = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": mlflow}


def read_store(folder: Path, store: Store) -> list[Run]:
    """The runs that a fake tracker holds."""
    return list(store.runs.values())


READERS = dict.fromkeys(FAKES, read_store) | {"tensorboard": read_tensorboard}
