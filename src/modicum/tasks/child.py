"""A helper process that answers requests in JSON lines and is killed when it takes too long.

For code that must not run in the trainer's own process: it may hang, crash, use up memory
or print. One request costs at most `limit` seconds; a child that is killed or dies is
replaced at the next request. The first line that the child writes says that it is ready,
or is {"fault": ...}, which then is the reply.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parents[2])  # where a child finds this package
START_SECONDS = 120.0  # importing is slow on a cold disk


class ChildFailed(Exception):
    """The child died or was killed; what it was asked has no answer."""


class Child:
    """A Python process with these arguments (`-m`, a module), started when it is first asked."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.owner = os.getpid()
        atexit.register(self.close)

    def ask(self, request: Mapping[str, Any], limit: float) -> Any:
        """The reply to `request`; ChildFailed after `limit` seconds or when the child dies."""
        if self.owner != os.getpid():
            # A fork of this process: the child belongs to the parent, whose pipes it has.
            self.process, self.owner = None, os.getpid()
        if self.process is None:
            self._start()
            ready = self._receive(START_SECONDS)
            if "fault" in ready:
                self.close()
                return ready
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.close()
            raise ChildFailed("the helper process has ended") from None
        return self._receive(limit)

    def close(self) -> None:
        """End the process, if there is one."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was not yet written has no reader
                pass

    def _start(self) -> None:
        # -P: nothing that happens to lie in the current folder is imported.
        command = [sys.executable, "-P", *self.arguments]
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
        self.lines = queue.SimpleQueue()
        reader = threading.Thread(target=_pump, args=(self.process.stdout, self.lines), daemon=True)
        reader.start()

    def _receive(self, limit: float) -> Any:
        try:
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            self.close()
            raise ChildFailed(f"no reply within {limit:g} s") from None
        if line is None:
            self.close()
            raise ChildFailed("the helper process has ended")
        return json.loads(line)


def _pump(stream: Any, lines: queue.SimpleQueue[str | None]) -> None:
    """Put each line of `stream` into `lines`, and None at its end."""
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # closed while it was read
        pass
    lines.put(None)
