"""The machine that a run is on: peak memory, versions, commit. Imports no torch itself."""

import contextlib
import ctypes
import gc
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Self

from modicum.child import ENDING

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
TWICE_SECONDS = 1.0  # in which two are one: `timeout` and clusters also send to the whole group
PACKAGES = ("modicum", "torch", "transformers", "peft", "datasets", "safetensors", "numpy")


class Stopwatch:
    """Seconds of the stages of something, one after the other; some come again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """`stage` has ended, which began when the one before it ended."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds of all stages so far."""
        return sum(self.seconds.values())


def reuse_memory() -> None:
    """Let this process keep freed memory for its next tensors, where glibc manages it: by default
    each page is asked for and cleared again, a tenth of a training step on a CPU. oneDNN
    and torch's ideep each keep what was compiled for a number of rows, by default 1,024 times,
    0.6 MB each in bf16: a run grew by 20 MB a step. With so few it is as fast."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "64")  # read at the first product
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def require_out_of_memory(error: Exception) -> None:
    """Raise the error again unless it says that memory ran out, on a GPU or here."""
    said = type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error)
    if not (said or isinstance(error, MemoryError)):
        raise error


def _cuda() -> Any | None:
    """torch's, where that is loaded and sees a GPU."""
    torch: Any = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def drop_caches() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    if cuda := _cuda():
        cuda.empty_cache()


def reset_peak() -> None:
    """Give back what is free, and measure peak memory anew where the system allows it."""
    drop_caches()
    # Where this is refused, the peak counts from the start of the process.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Peak memory since `reset_peak`: of the GPU if one is used, else resident memory."""
    if (cuda := _cuda()) and (most := cuda.max_memory_allocated()):
        return int(most)
    if (peak := number_in("/proc/self/status", "VmHWM:", 1024)) is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def number_in(path: str | Path, key: str = "", unit: int = 1) -> int | None:
    """The number after `key` in a file of the kernel, times `unit`; None where there is none."""
    try:
        words = Path(path).read_text().split()
    except OSError:
        return None
    at = words.index(key) + 1 if key in words else 0
    found = words[at] if at < len(words) and (at or not key) else ""
    return int(found) * unit if found.isdigit() else None


def environment() -> dict[str, Any]:
    """Versions, machine and commit, as a run folder records them."""
    commit, named, versions = None, None, dict[str, str | None].fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    how: dict[str, Any] = {"text": True, "timeout": 5, "stderr": subprocess.DEVNULL}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.check_output(command, **how).strip()
    with contextlib.suppress(OSError):
        named = re.search(r"model name\s*:(.*)", Path("/proc/cpuinfo").read_text())
    torch, cuda = sys.modules.get("torch"), _cuda()
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "processor": named[1].strip() if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if torch is not None else None,
        "gpu": cuda.get_device_name() if cuda else None,
        "commit": commit,
    }


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """A context in which the first signal to end (ENDING) only sets `number`; the second is raised.
    With `at_once` the first is raised as Stopped, but for what runs in `whole`. Signals that are
    ignored, as by `nohup`, stay so. Off the main thread it does nothing."""

    def __init__(self, at_once: bool = False) -> None:
        self.at_once = at_once
        self.number = 0  # the signal that came; 0: none
        self.torn = False  # whether the second one, or an error, has ended what was to be whole
        self.agreed: Callable[[int], int] | None = None  # of processes of a run, which end together
        self._when = 0.0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether the program is asked to end."""
        return bool(self.number)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ignored = {n for n in ENDING[1:] if signal.getsignal(n) in (signal.SIG_IGN, None)}
            self._before = {n: signal.signal(n, self._ask) for n in ENDING if n not in ignored}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """What runs in here comes to its end first; then what was asked for is raised, or what
        `agreed` says: a signal that one process hears after that is for the next time."""
        self.at_once, self.torn = False, True
        try:
            yield
            number = self.agreed(self.number) if self.agreed else 0
            self.torn = False
        finally:
            self.at_once = True
        if number := number if self.agreed else self.number:
            raise Stopped(number)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again, now = self.asked, time.monotonic()
        if again and number != signal.SIGINT and now - self._when < TWICE_SECONDS:
            return
        self.number, self._when = number, now
        if again or self.at_once:
            raise Stopped(number)
