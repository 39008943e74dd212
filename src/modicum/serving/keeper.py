"""Runs a program until it ends or standard input closes, which it does however a parent ends.

    python keeper.py PROGRAM ARGUMENT ...

Its whole process group ends with it: by SIGTERM, and by SIGKILL after GRACE seconds or when the program
has ended. Imports nothing of ours.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

GRACE = 10.0


def main() -> None:
    if os.getpgid(0) != os.getpid():
        os.setsid()  # what ends below is this group
    # A program whose signals are blocked could not be asked to end.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # for the program, which is asked below
    closed = threading.Event()

    def read() -> None:
        while os.read(0, 1024):
            pass
        closed.set()

    threading.Thread(target=read, daemon=True).start()
    while program.poll() is None and not closed.wait(0.1):
        pass
    os.killpg(0, signal.SIGTERM)
    until = time.monotonic() + GRACE
    while program.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    with suppress(OSError):  # a full disk
        print(f"keeper: the program ended ({program.poll()})", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)  # what it has started, and this process


if __name__ == "__main__":
    main()
