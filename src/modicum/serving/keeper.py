"""Runs a program until it ends, this process is asked to end or its parent is gone, however that ended.

    python keeper.py PARENT PROGRAM ARGUMENT ...       PARENT is a process id

Its whole process group ends with it: by SIGTERM, and by SIGKILL after GRACE seconds or when the program
has ended. Imports nothing of ours."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

GRACE = 10.0


def main() -> None:
    parent, *command = sys.argv[1:]
    if os.getpgid(0) != os.getpid():
        os.setsid()  # what ends below is this group
    asked = list[int]()  # an Event could not be set in the middle of its own wait
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    # A program whose signals are blocked could not be asked to end.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    program = subprocess.Popen(command)
    while program.poll() is None and os.getppid() == int(parent) and not asked:
        time.sleep(0.1)
    os.killpg(0, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        program.wait(GRACE)
    with suppress(OSError):  # a full disk
        print(f"keeper: the program ended ({program.poll()})", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)  # what it has started, and this process


if __name__ == "__main__":
    main()
