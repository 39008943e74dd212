"""One process writes a folder: a lock file in it says which.

`.lock` names the process and its machine, and the process holds a lock of the system (flock) on
it for as long as it writes, which ends with the process however that ends. Not every file system
shows such a lock to other machines: what names another one holds until somebody removes the file.
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
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from modicum import disk
from modicum.types import FolderError

PATIENCE = 2.0  # seconds for which a lock without a name may be one that is being written
FILES: set[int] = set()  # lock files that this process has open


class FolderTaken(FolderError):
    """Another process writes the folder."""


class Owner(NamedTuple):
    """The process that writes a folder."""

    pid: int
    host: str
    folder: int
    """The inode of the folder: the lock in a copy of it is nobody's."""


@contextlib.contextmanager
def held(folder: Path, what: str = "writing") -> Iterator[None]:
    """Hold a folder that exists; FolderTaken when another process does, `what` of it being said."""
    path, pid = folder / disk.LOCK, os.getpid()
    with disk.writing(folder):
        file = _take(folder, what)
    FILES.add(file)
    try:
        yield
    finally:
        if os.getpid() == pid:  # and not a fork of it, which leaves the context as well
            with contextlib.suppress(OSError):
                if _is_at(path, file):  # no other was let in by hand
                    path.unlink()
            FILES.remove(file)
            os.close(file)


def check(folder: Path, what: str = "writing") -> None:
    """FolderTaken when a process that lives holds the folder; a look only, and `held` decides."""
    if (folder / disk.LOCK).is_file():
        with held(folder, what):
            pass


def _take(folder: Path, what: str) -> int:
    """Our lock file, open and locked, with our name in it."""
    path, end = folder / disk.LOCK, time.monotonic() + PATIENCE
    mine = Owner(os.getpid(), platform.node(), folder.stat().st_ino)
    advice = "let it end first, or stop it, or take another folder"
    while True:
        with path.open("a+b") as lock:
            locked, owner = _flocked(lock), _read(lock, mine)
            if owner is not None:
                named = f"another process is {what} {folder}: {owner.pid} on {owner.host}"
                if owner.host != mine.host:
                    raise FolderTaken(f"{named}; if it is gone, remove {path}")
                # A name that is nobody's is of a lock that another is about to take.
                if not locked and psutil.pid_exists(owner.pid):
                    raise FolderTaken(f"{named}; {advice}")
            # Whoever had it may have removed the file since we opened it.
            if locked is not False and _is_at(path, lock.fileno()):
                try:
                    lock.truncate(0)
                    lock.write(json.dumps(mine._asdict()).encode() + b"\n")
                    lock.flush()
                except OSError:
                    path.unlink()
                    raise
                return os.dup(lock.fileno())
        if time.monotonic() > end:
            text = f"another process is about to begin or end {what} {folder}"
            raise FolderTaken(f"{text}, and does not go on; {advice}")
        time.sleep(0.02)


def _flocked(lock: IO[bytes]) -> bool | None:
    """Whether nobody else has it; None where a file system has no such locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _read(lock: IO[bytes], mine: Owner) -> Owner | None:
    """Who is named in a lock file as the owner of the folder that `mine` asks for."""
    lock.seek(0)
    try:
        owner = Owner(**json.loads(lock.read()))
    except (ValueError, TypeError):
        return None
    named = isinstance(owner.pid, int) and 0 < owner.pid < 2**31
    return owner if named and owner.folder == mine.folder else None


def _is_at(path: Path, file: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file))
    return False


def _forget() -> None:
    """In a forked process: the locks are the parent's, and end with it."""
    while FILES:
        os.close(FILES.pop())


os.register_at_fork(after_in_child=_forget)
