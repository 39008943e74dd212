"""Folders that are made, cleared and written, and what the system may have against it, in one line.

One process writes a folder (`held`): `.lock` names it and its machine, and it holds a lock of the
system (flock) on that file. Not every file system shows such a lock to other machines: what names
another one holds until somebody removes the file."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from modicum.types import FolderError, UserError

LOCK = ".lock"  # of `held`; no part of what is in a folder
ASIDE = re.compile(r"\.[\w.-]+\.(json|jsonl|toml)\.tmp")  # what `write_whole` has not finished
TELLS = ("config.json", ".toml")  # what a folder is
FULL = (errno.ENOSPC, errno.EDQUOT)
RUST = re.compile(r"I/O error: .*\(os error (\d+)\)")


def errors() -> tuple[type[Exception], ...]:
    """What a write may raise; safetensors, once it is loaded, has an error of its own."""
    safetensors = sys.modules.get("safetensors")
    return (OSError,) if safetensors is None else (OSError, safetensors.SafetensorError)


def number(error: Exception) -> int:
    """The system's number of an error; 0 where it is none of the system's."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    found = RUST.search(str(error))
    return int(found[1]) if found else 0


def explained(error: Exception) -> str:
    """An error of the system in one line, with the file if it is known."""
    name = getattr(error, "filename", None)
    text = os.strerror(number(error)) if getattr(error, "errno", 1) else str(error)
    return text if name is None else f"{name}: {text}"


@contextlib.contextmanager
def writing(folder: Path, needed: int = 0, hint: str = "") -> Iterator[None]:
    """What the system has against files of `needed` bytes here is a FolderError; `hint` ends it."""
    try:
        yield
    except errors() as error:
        if not (why := number(error)):
            raise
        text = f"{folder} cannot be written: {os.strerror(why)}"
        if why in FULL:
            wanted = f"{needed / 1e6:,.1f} MB are needed, " if needed > 1e5 else ""
            free = "nothing is"
            with contextlib.suppress(OSError):
                free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are"
            text += f" ({wanted}{free} free)"
        raise FolderError(text + hint) from error


@contextlib.contextmanager
def reading(path: Path | str, missing: str = "") -> Iterator[None]:
    """What the system has against reading a file is a UserError; `missing` says that it is not there."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(missing or f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def entries(folder: Path) -> list[Path]:
    """What is in a folder that may not be there yet, but for its lock and what a kill has left
    half-written. UserError where there is something else, or the system does not let us look."""
    try:
        if folder.is_dir():
            some = (e for e in folder.iterdir() if e.name != LOCK)
            return sorted(e for e in some if not ASIDE.fullmatch(e.name))
        _check_way(folder)
        return []
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the folder {folder} cannot be used: {reason}") from None


def check_writable(folder: Path) -> None:
    """FolderError where a folder, or the one that it would be made in, may not be written."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    if not os.access(place, os.W_OK | os.X_OK):
        raise FolderError(f"{place} cannot be written: Permission denied")


def _check_way(folder: Path) -> None:
    """UserError where something that is no folder has its name, or that of one above it."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.is_symlink() and not place.exists():
            raise UserError(f"{place} is a link to nothing ({os.readlink(place)})")
        if place.exists():
            raise UserError(f"{place} is a file, not a folder")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; UserError where the system does not let us."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            _check_way(folder)
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}") from None


def clear_folder(folder: Path) -> None:
    """Remove all that is in a folder but its lock; of a link to one, what it leads to.
    `config.json` and TOML go last: a half cleared one is still known for what it was."""
    with writing(folder):
        for entry in sorted(entries(folder), key=lambda entry: entry.name.endswith(TELLS)):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a half."""
    aside = path.with_name(f".{os.getpid()}.{path.name}.tmp")  # another may write the same
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)  # the disk may be full, and this takes room
        raise


PATIENCE = 2.0  # seconds for which a lock without a name may be one that is being written
LOCKS: set[int] = set()  # lock files that this process has open


class FolderTaken(FolderError):
    """Another process writes the folder."""


class Owner(NamedTuple):
    """The process that writes a folder."""

    pid: int
    host: str
    folder: int  # the inode of the folder: the lock in a copy of it is nobody's


@contextlib.contextmanager
def held(folder: Path, what: str = "writing", name: str = LOCK, wait: float = 0) -> Iterator[None]:
    """Hold a folder that exists, or a thing in it that has a lock called `name`; FolderTaken when
    another process does, `what` of it being said, and still does after `wait` seconds."""
    path, pid, end = folder / name, os.getpid(), time.monotonic() + wait
    with writing(folder):
        while True:
            try:
                file = _take(path, what)
                break
            except FolderTaken:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.1)
    LOCKS.add(file)
    try:
        yield
    finally:
        if os.getpid() == pid:  # and not a fork of it, which leaves the context as well
            with contextlib.suppress(OSError):
                if _is_at(path, file):  # no other was let in by hand
                    path.unlink()
            LOCKS.remove(file)
            os.close(file)


def check_free(folder: Path, what: str = "writing", name: str = LOCK) -> None:
    """FolderTaken when a process that lives holds the folder; a look only, and `held` decides."""
    if (folder / name).is_file():
        with held(folder, what, name):
            pass


def _take(path: Path, what: str) -> int:
    """Our lock file, open and locked, with our name in it."""
    folder, end = path.parent, time.monotonic() + PATIENCE
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
    except OSError as error:
        return False if isinstance(error, BlockingIOError | PermissionError) else None
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
    while LOCKS:
        os.close(LOCKS.pop())


os.register_at_fork(after_in_child=_forget)
