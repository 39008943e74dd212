"""A helper process that answers requests in JSON lines and is killed when it takes too long.

For code that must not run in the trainer's own process: it may hang, crash, use up memory
or print. A thread cannot be stopped; a process can. It is a new interpreter with JSON lines
on its pipes: nothing is forked or pickled, no signal is used, and any thread may ask. The
first line that the child writes says that it is ready, or is {"fault": ...}, which then is
the reply. The child should end when its standard input does, however the parent ended.
"""

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parents[1])  # where a child finds this package
START_SECONDS = 120.0  # importing is slow on a cold disk


class ChildFailed(Exception):
    """The child died or was killed; what it was asked has no answer."""


class Child:
    """A Python process with these arguments (`-m`, a module), started when it is first asked.

    One that was killed or died is replaced at the next request.
    """

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.owner = os.getpid()
        self.lock = threading.Lock()

    def ask(self, request: Mapping[str, Any], limit: float) -> Any:
        """The reply to `request`; ChildFailed after `limit` seconds or when the child dies."""
        with self.lock:
            fault = self.start()
            if fault is not None:
                return fault
            assert self.process is not None and self.process.stdin is not None
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
            except OSError:
                self.close()
                raise ChildFailed("the helper process has ended") from None
            return self.receive(limit)

    def start(self) -> Any | None:
        """Start the process unless it runs; its first line if that is a fault.

        Raises ChildFailed when it does not start.
        """
        if self.owner != os.getpid():
            # A fork of this process: the child belongs to the parent, whose pipes it has.
            self.process, self.owner = None, os.getpid()
        if self.process is not None:
            return None
        self._open()
        ready = self.receive(START_SECONDS)
        if "fault" not in ready:
            return None
        self.close()
        return ready

    def receive(self, limit: float) -> Any:
        """The child's next line; it is killed if none comes within `limit` seconds."""
        reply: str | None = None
        why = "the helper process has ended"
        try:
            reply = self.lines.get(timeout=limit)
        except queue.Empty:
            why = f"no reply within {limit:g} s"
        finally:
            # After an interrupt, too: the next line would be the reply to another request.
            if reply is None:
                self.close()
        if reply is None:
            raise ChildFailed(why)
        return json.loads(reply)

    def close(self) -> None:
        """End the process, if there is one, and wait until it is gone."""
        process, self.process = self.process, None
        atexit.unregister(self.close)
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not yet written has no reader
                    pipe.close()

    def _open(self) -> None:
        # -P: nothing that happens to lie in the current folder is imported.
        command = [sys.executable, "-P", "-W", "ignore", *self.arguments]
        # Texts hash alike in every process: what is made from sets of texts is the same.
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONIOENCODING": "utf-8",
            "PYTHONPATH": os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")])),
        }
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run, which ends its step and saves
        )
        atexit.register(self.close)
        self.lines = queue.SimpleQueue()
        reader = threading.Thread(target=_pump, args=(self.process.stdout, self.lines), daemon=True)
        reader.start()


def outlast_signals() -> None:
    """To be called by a child: what asks all processes to end is for the run.

    The run ends its step, which needs the child, and the child's input after it.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _pump(stream: Any, lines: queue.SimpleQueue[str | None]) -> None:
    """Put each line of `stream` into `lines`, and None at its end."""
    with suppress(ValueError):  # closed while it was read
        for line in stream:
            lines.put(line)
    lines.put(None)
