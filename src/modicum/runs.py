"""A run folder that is written and read; docs/runs.md has its files. Nothing here imports torch.

Keys of metrics.jsonl under `time/` and `memory/` are measurements; all others are the same whenever
a run is repeated or resumed."""

import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

from modicum import disk
from modicum.disk import clear_folder, entries, make_folder, write_whole
from modicum.types import UserError

LINES = ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl", "decisions.jsonl")
FAILED = "failed.json"
AT_THE_END = ("result.json", "anatomy.json", "completions-trained.jsonl")
FORMAT = 2  # of checkpoints; 1 had no hash of the whole base


class Run:
    """One run folder that is being written, unless another process `writes` it: then only read. A
    full disk is a FolderError."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        # Called with every line of a file, by its name.
        self.listeners: dict[str, Sequence[Callable[[Mapping[str, Any]], None]]] = {}

    @classmethod
    def create(cls, folder: Path, config_toml: str, overwrite: bool) -> Self:
        """A new run folder; one that holds anything is a UserError unless `overwrite`."""
        check_new(folder, overwrite)
        make_folder(folder)
        clear_folder(folder)
        run = cls(folder)
        run.write_text("config.toml", config_toml)
        return run

    def writing(self, needed: int = 0) -> AbstractContextManager[None]:
        """A context in which what the system has against writing here is a FolderError."""
        hint = "; when it can be, --resume goes on" * (self.folder / "config.toml").is_file()
        return disk.writing(self.folder, needed, hint)

    def append(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add one JSON line to `metrics.jsonl` or another file of lines."""
        self.extend(name, [entry])
        for tell in self.listeners.get(name, ()):
            tell(entry)

    def extend(self, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
        """Add JSON lines at once, of which no listener hears."""
        if not self.writes:
            return
        with self.writing(), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(to_lines(entries))

    def cut(self, step: int, ended: bool = True) -> None:
        """Drop what belongs to `step` or later, and (not `ended`) the end: they are written again."""
        for aside in (e for e in self.folder.iterdir() if disk.ASIDE.fullmatch(e.name)):
            aside.unlink()
        for name in LINES:
            self._keep(name, lambda entry: entry["step"] < step)
        self._keep("changes.jsonl", lambda entry: True)
        if not ended:
            with self.writing():
                for name in AT_THE_END:
                    (self.folder / name).unlink(missing_ok=True)
            self._keep("evaluations.jsonl", lambda entry: entry.get("name") != "trained")
            self._keep("samples.jsonl", lambda entry: not entry.get("end"))

    def _keep(self, name: str, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        if (path := self.folder / name).exists():
            text = to_lines(filter(wanted, read_lines(path)))
            if text.encode() != path.read_bytes():
                self.write_text(name, text)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_lines(self, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write a JSONL file whole."""
        self.write_text(name, to_lines(entries))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole."""
        if self.writes:
            with self.writing(len(text)):
                write_whole(self.folder / name, text)

    @contextmanager
    def checkpointing(
        self, step: int, state: Mapping[str, Any], needed: int, kept: int = 2
    ) -> Iterator[Path]:
        """A folder for the tensors (`needed` bytes) of a checkpoint, which counts once it is whole."""
        final = self.checkpoint(step)
        folder = final.with_name(f".{final.name}")
        tensors = folder / "tensors.safetensors"
        with self.writing(needed):
            self._drop_halves()
            folder.mkdir(parents=True)
            try:
                yield folder
                with tensors.open("rb") as file:
                    os.fsync(file.fileno())  # some file systems say only now that they are full
                full = {"format": FORMAT, **state, "tensors_sha256": file_hash(tensors)}
                write_whole(folder / "state.json", json.dumps(full, indent=2) + "\n")
                shutil.rmtree(final, ignore_errors=True)
                os.replace(folder, final)
                for old in checkpoints(self.folder)[:-kept]:
                    shutil.rmtree(old)
            except disk.errors():
                self._drop_halves()
                raise

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def _drop_halves(self) -> None:
        for half in (self.folder / "checkpoints").glob(".step-*"):
            shutil.rmtree(half, ignore_errors=True)


def check_new(folder: Path, overwrite: bool) -> None:
    """UserError where no new run may begin; what is there may go only with `overwrite`."""
    if not entries(folder):
        return
    if not is_run(folder):
        raise UserError(f"{folder} is not empty and no run folder; --out takes another")
    if not overwrite:
        done = (folder / "result.json").exists()
        raise UserError.of("holds_a_finished_run" if done else "holds_a_run", folder=folder)


def is_run(folder: Path) -> bool:
    """Whether a run wrote `folder`: many other tools have a `config.toml` too."""
    try:
        tables = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return tables.keys() >= {"model", "task", "update", "steps"}


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"))


def read_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(tensor file, state) of a checkpoint; one that was cut or changed is a UserError."""
    tensors, state_path = folder / "tensors.safetensors", folder / "state.json"
    try:
        state = json.loads(state_path.read_text(encoding="utf-8"))
        expected, written = state["tensors_sha256"], state.get("format", 1)
        found = file_hash(tensors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = type(error).__name__
        raise UserError(f"checkpoint {folder} is damaged ({reason}); {_other(folder)}") from None
    if found != expected:
        why = f"{tensors.name} ({tensors.stat().st_size} bytes) is not what was written"
        raise UserError(f"checkpoint {folder} is damaged: {why}; {_other(folder)}")
    if written != FORMAT:
        age = "an older" if written == 1 else "another"
        raise UserError.of("format", folder=folder, age=age, written=written, known=FORMAT)
    return tensors, state


def _other(folder: Path) -> str:
    others = [c.name for c in checkpoints(folder.parent.parent) if c != folder]
    return f"remove it to go on from {others[-1]}" if others else "there is no other in this run"


def open_run(folder: Path) -> Run:
    """A run folder that exists; UserError when it is none."""
    if not (folder / "config.toml").is_file():
        why = "(it has no config.toml); `modicum runs` lists those that are"
        raise UserError(f"{folder} is not a run folder {why}")
    return Run(folder)


def read_lines(path: Path, optional: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSONL file, as `numbered` has them."""
    return [row for _, row in numbered(path, optional)]


def numbered(path: Path, optional: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """`file:line` and object of each line that is not blank; a broken last one is being written."""
    if optional and not path.exists():
        return
    with disk.reading(path, f"{path} is missing"), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8").rstrip())
            except (ValueError, RecursionError) as error:
                if line.endswith(b"\n"):
                    raise UserError(f"{where}: not JSON ({error})") from None
                return
            if not isinstance(row, dict):
                raise UserError(f"{where}: an object is wanted, not {type(row).__name__}")
            yield where, row


def read_object(path: Path, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file (an `optional` one that is missing: empty), or a UserError."""
    if optional and not path.exists():
        return {}
    try:
        with disk.reading(path, f"{path} is missing"):
            data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: an object is wanted, not {type(data).__name__}")
    return data


def flat(value: Any, where: str = "", lists: bool = False) -> Iterator[tuple[str, Any]]:
    """What nested tables hold, each with its place: `a.b`; with `lists` also theirs: `a[0].b`."""
    if isinstance(value, Mapping):
        inside = [(f"{where}.{key}".lstrip("."), item) for key, item in value.items()]
    elif lists and isinstance(value, list):
        inside = [(f"{where}[{number}]", item) for number, item in enumerate(value)]
    else:
        yield where, value
        return
    for place, item in inside:
        yield from flat(item, place, lists)


def to_lines(entries: Iterable[Mapping[str, Any]]) -> str:
    """The text of a JSONL file."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
