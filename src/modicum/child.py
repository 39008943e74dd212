"""A helper process that answers requests in JSON lines and is killed when it takes too long.

For code that may hang, crash, use up memory or print; any thread may ask. The first line that the
child writes says that it is ready."""

import atexit
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from modicum.types import UserError

HERE = str(Path(__file__).parents[1])  # where a child finds this package
START_SECONDS = 120.0  # importing is slow on a cold disk
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what asks a program to end


@contextmanager
def deaf() -> Iterator[None]:
    """What is started in here hears no ENDING: the run, which it helps, ends its step first."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ChildFailed(Exception):
    """The child died or was killed; what it was asked has no answer."""


class Child:
    """A Python process with these arguments, begun when it is asked and was not or has ended."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self._fresh()
        os.register_at_fork(after_in_child=self._fresh)

    def _fresh(self) -> None:
        """Without a process; in a fork of this one its pipes are the parent's."""
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.lock = threading.RLock()
        self.num_asked = 0  # since the process was started

    def ask(self, request: Mapping[str, Any], limit: float) -> Any:
        """The reply to `request`; ChildFailed after `limit` seconds or when the child dies,
        UserError if it does not start. A child may say {"importing": ...} first, and once more when
        it is ready: a long import counts, but a quarter of the limit is left after it."""
        with self.lock:
            self.start()
            assert self.process is not None and self.process.stdin is not None
            began, done = time.monotonic(), False
            self.num_asked += 1
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                if "importing" in (reply := self.receive(limit)):
                    self.receive(START_SECONDS)
                    reply = self.receive(max(began + limit - time.monotonic(), limit / 4))
                done = True
                return reply
            except OSError:
                raise ChildFailed("the helper process has ended") from None
            finally:
                # After an interrupt, too: the next line would be the reply to another request.
                if not done:
                    self.close()

    def start(self) -> None:
        """Start the process unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        # Texts hash alike in every process: what is made from sets of texts is the same.
        words = {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"}
        words["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
        how: dict[str, Any] = {"encoding": "utf-8", "env": os.environ | words}
        how |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # -P: nothing that happens to lie in the current folder is imported.
        command = [sys.executable, "-P", "-W", "ignore", *self.arguments]
        with deaf():  # and a terminal's signals are not for it
            self.process = subprocess.Popen(command, start_new_session=True, **how)
        atexit.register(self.close)
        self.lines, self.num_asked, ready = queue.SimpleQueue(), 0, None
        threading.Thread(target=_pump, args=(self.process.stdout, self.lines), daemon=True).start()
        try:
            ready = self.receive(START_SECONDS)
        except ChildFailed as error:
            raise UserError(f"the process of {self.arguments[-1]} did not start: {error}") from None
        finally:
            if ready is None:
                self.close()

    def receive(self, limit: float) -> Any:
        """The child's next line; ChildFailed if none comes within `limit` seconds."""
        try:
            reply = self.lines.get(timeout=limit)
        except queue.Empty:
            raise ChildFailed(f"no reply within {limit:g} s") from None
        if reply is None:
            raise ChildFailed("the helper process has ended")
        return json.loads(reply)

    def close(self) -> None:
        """End the process, if there is one, and wait until it is gone."""
        process, self.process = self.process, None
        atexit.unregister(self.close)
        if process is not None:
            with suppress(OSError), process:  # what was not yet written has no reader
                process.kill()


def serve(
    answer: Callable[[Any, Callable[[str], None]], str], library: str = "", **limits: int
) -> None:
    """In a child: answer requests from standard input until it closes, with a line of JSON each.
    `library` is imported first; `answer` gets a request, and a function that writes a line before
    the reply. `limits` are those of `limit`."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(line)
        os._exit(0)  # the parent is gone, whatever the main thread is doing

    def say(line: str) -> None:
        print(line, file=replies, flush=True)

    if library:
        import_module(library)
    for name, value in limits.items():
        limit(name, value)
    threading.Thread(target=read, daemon=True).start()
    say('{"ready": true}')
    while True:
        say(answer(json.loads(requests.get()), say))


def limit(name: str, value: int) -> None:
    """Set a limit of this process, such as RLIMIT_AS, where the system has it."""
    with suppress(AttributeError, ValueError, OSError):
        kind = getattr(resource, name)
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _pump(stream: Any, lines: queue.SimpleQueue[str | None]) -> None:
    with suppress(ValueError):  # closed while it was read
        for line in stream:
            lines.put(line)
    lines.put(None)
