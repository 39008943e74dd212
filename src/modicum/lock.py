"""One process writes a folder: a lock file in it says which.

`.lock` holds the process's number, when it started, and its machine, so that the lock of a
process that was killed is recognised as such, also when its number was given to another. A
machine that is not this one cannot be asked: its lock holds until somebody removes the file.
Readers take no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from modicum import disk
from modicum.types import FolderError

PATIENCE = 2.0  # seconds for which a lock without a name may be one that is being written


class FolderTaken(FolderError):
    """Another process writes the folder."""


@dataclass(frozen=True)
class Owner:
    """The process that writes a folder."""

    pid: int
    host: str
    started: str
    """When it began, in the system's own count; empty where that cannot be had."""
    boot: str
    """Which start of which machine it runs under, and in which space of process numbers."""
    folder: int
    """The inode of the folder: the lock in a copy of it is nobody's."""
    token: int
    """Tells two locks of one process apart."""

    @classmethod
    def here(cls, folder: Path) -> Owner:
        """This process, as the owner of `folder`."""
        pid, host = os.getpid(), platform.node()
        inode = folder.stat().st_ino
        return cls(pid, host, _started(pid), _boot(), inode, time.time_ns())

    def lives(self, mine: Owner) -> bool:
        """Whether it still writes the folder that `mine` asks for, as far as can be known."""
        if self.folder != mine.folder:
            return False
        if self.boot != mine.boot:
            # Another machine, or a container on this one; the same machine has started anew.
            started_anew = self.boot.partition(" ")[0] != mine.boot.partition(" ")[0]
            return not (self.host == mine.host and started_anew)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it is another user's
        # Empty: the system does not say it of this process.
        return _started(self.pid) in ("", self.started)


@contextlib.contextmanager
def held(folder: Path, what: str = "writing") -> Iterator[None]:
    """Hold a folder that exists; FolderTaken when another process does, `what` of it being said."""
    with disk.writing(folder):
        mine = Owner.here(folder)
        try:
            _take(folder, mine, what)
        except BlockingIOError:
            text = f"another process is about to begin or end {what} {folder}, and does not go on"
            raise FolderTaken(f"{text}; let it end, or stop it, or take another folder") from None
    try:
        yield
    finally:
        _release(folder / disk.LOCK, mine)


def check(folder: Path, what: str = "writing") -> None:
    """FolderTaken when a process that lives holds the folder; a look only, and `held` decides."""
    if (folder / disk.LOCK).is_file():
        owner, mine = _read(folder / disk.LOCK), Owner.here(folder)
        if owner is not None and owner.lives(mine):
            raise _refusal(folder, owner, mine, what)


def _refusal(folder: Path, owner: Owner, mine: Owner, what: str) -> FolderTaken:
    text = f"another process is {what} {folder}: {owner.pid} on {owner.host}"
    if owner.boot == mine.boot:
        return FolderTaken(f"{text}; let it end first, or stop it, or take another folder")
    return FolderTaken(f"{text}; if it is gone, remove {folder / disk.LOCK}")


def _take(folder: Path, mine: Owner, what: str) -> None:
    path, began = folder / disk.LOCK, time.monotonic()
    while True:
        created, file = _opened(path)
        with os.fdopen(file, "r+b") as lock, _alone(file):
            # Whoever had it may have removed the file since we opened it.
            if _inode(path) != os.fstat(file).st_ino:
                continue
            owner = _parsed(lock.read())
            if owner is not None and owner.lives(mine):
                raise _refusal(folder, owner, mine, what)
            # Where `_alone` does not reach (another machine), one that is empty is being written.
            if owner is not None or created or time.monotonic() - began > PATIENCE:
                lock.seek(0)
                lock.truncate()
                try:
                    lock.write(json.dumps(asdict(mine)).encode() + b"\n")
                    lock.flush()
                except OSError:
                    path.unlink(missing_ok=True)
                    raise
                return
        time.sleep(0.02)


def _opened(path: Path) -> tuple[bool, int]:
    """(whether we made it, the file), in an order that two machines agree about."""
    while True:
        try:
            return True, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                return False, os.open(path, os.O_RDWR)


@contextlib.contextmanager
def _alone(file: int) -> Iterator[None]:
    """Nobody else on this machine takes or removes the lock meanwhile.

    BlockingIOError when somebody does, and does not go on (a process that was stopped).
    """
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - began > PATIENCE:
                raise
            time.sleep(0.02)
        except OSError:
            break  # a few file systems have none; then only who makes the file first decides
        else:
            break
    yield


def _release(path: Path, mine: Owner) -> None:
    """Remove our lock; not that of another who was let in by hand, or of our parent."""
    with contextlib.suppress(OSError), path.open("r+b") as lock, _alone(lock.fileno()):
        if _parsed(lock.read()) == mine and mine.pid == os.getpid():
            path.unlink()


def _read(path: Path) -> Owner | None:
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None


def _parsed(text: bytes) -> Owner | None:
    try:
        owner = Owner(**json.loads(text))
    except (ValueError, TypeError):
        return None
    return owner if isinstance(owner.pid, int) and 0 < owner.pid < 2**31 else None


def _inode(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


def _started(pid: int) -> str:
    """When a process began, "ended" if it only waits for its parent; empty: nobody says."""
    with contextlib.suppress(OSError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if state in "ZX" else rest[18]
    return ""


def _boot() -> str:
    """The start of the machine, and the space of process numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()
