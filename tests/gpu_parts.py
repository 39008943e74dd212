"""Parts for tests of benchmarks/gpu.py: what a part may do, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from gpu import Asked, Cannot, Put


def good(asked: Asked, put: Put) -> None:
    """Finds what it was asked, in words that JSON has none for, and prints besides."""
    print("this is no finding")
    put("asked", [asked.device, asked.small])
    put("odd", {1: float("nan"), "deep": (float("inf"), None)})
    put("line", "all well")


def failing(asked: Asked, put: Put) -> None:
    """Fails after a finding."""
    put("before", 1)
    raise RuntimeError("the card is on fire")


def dying(asked: Asked, put: Put) -> None:
    """Ends as by a fault of a driver."""
    put("before", 1)
    os.abort()


def cannot(asked: Asked, put: Put) -> None:
    """Says why it has nothing to say."""
    raise Cannot("needs another machine")


def endless(asked: Asked, put: Put) -> None:
    """Never ends, and has started what never ends."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    put("pids", [os.getpid(), other.pid])
    time.sleep(600)
