r"""Compare formulas in a child process with a time limit.

    parent   equal(gold, answer, seconds) ──▶ {"gold": ..., "answer": ..., "seconds": ...}
    child    modicum.grading.algebra, then math-verify  ◀── {"same": true}

The text of a model can make an algebra system hang or fill the memory, and a thread cannot
be stopped. So the work is done in a process that is killed at the limit and started again
when it is next needed. It is a new interpreter with JSON lines on its pipes: nothing is
forked or pickled, neither torch nor sympy is imported here, no signal is used, and any thread
may ask. The child ends when its pipe closes, however the parent ended.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from modicum.types import UserError

NUM_CHILDREN = 2  # that may work at a time; each is started when it is first needed
MAX_ANSWERS = 5000  # of one child, before a new one takes its place
START_SECONDS = 120.0  # for the start of a child, and for importing sympy
SPARE_SECONDS = 15  # of the child's processor time above the limit, for importing sympy
MAX_MEMORY = 2 << 30  # bytes of address space of the child, where limits exist


@lru_cache(maxsize=4096)
def equal(gold: str, answer: str, seconds: float) -> bool:
    """Whether algebra finds `gold` and `answer` equal within `seconds`; False if it ends badly.

    Raises UserError if no child can be started.
    """
    return _pool.ask({"gold": gold, "answer": answer, "seconds": seconds}, seconds)


class Child:
    """One process, which answers one question at a time."""

    def __init__(self) -> None:
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        self.num_asked = 0
        self.process = subprocess.Popen(
            # -P: a random.py in the working folder must not be imported.
            [sys.executable, "-P", "-W", "ignore", "-m", "modicum.grading.symbolic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            encoding="ascii",
        )
        if self._read(START_SECONDS) is None:
            raise UserError("the process that compares formulas did not start")

    def ask(self, question: dict[str, Any], seconds: float) -> bool | None:
        """The verdict, or None if the child had to be killed or has died."""
        self.num_asked += 1
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.close()
            return None
        reply = self._read(seconds)
        if reply == {"importing": "sympy"}:
            start = time.monotonic()
            reply = self._read(START_SECONDS)
            # The import takes more than a second. It counts, but not so much that a slow
            # machine changes the verdict.
            left = seconds - (time.monotonic() - start)
            reply = reply and self._read(max(left, seconds / 4))
        return None if reply is None else reply["same"]

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next line of the child; it is killed if none comes within `seconds`."""
        assert self.process.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        killer = threading.Timer(seconds, kill)
        killer.daemon = True
        killer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            killer.cancel()
            killer.join()
        if late.is_set() or not line.endswith("\n"):
            self.close()
            return None
        return json.loads(line)

    def close(self) -> None:
        """Kill the process and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class Pool:
    """A few children, lent to the threads that ask."""

    def __init__(self) -> None:
        self.free: queue.LifoQueue[Child | None] = queue.LifoQueue()
        self.children: set[Child] = set()
        for _ in range(NUM_CHILDREN):
            self.free.put(None)  # a place for a child that is not started

    def ask(self, question: dict[str, Any], seconds: float) -> bool:
        """The verdict of some child; waits until one is free."""
        child = self.free.get()
        verdict = None
        try:
            if child is not None and child.process.poll() is not None:
                self.children.discard(child)  # it died unasked: no fault of this answer
                child.close()
                child = None
            if child is None:
                child = Child()
                self.children.add(child)
            verdict = child.ask(question, seconds)
        finally:
            # After an interrupt, too: the next reply of this child would be the wrong one.
            if child is not None and (verdict is None or child.num_asked >= MAX_ANSWERS):
                self.children.discard(child)
                child.close()
                child = None
            self.free.put(child)
        return bool(verdict)

    def close(self) -> None:
        """End all children."""
        while self.children:
            self.children.pop().close()


_pool = Pool()


def close() -> None:
    """End the child processes; a later question starts new ones."""
    global _pool
    _pool.close()
    _pool = Pool()


def _forget() -> None:
    """In a forked process: the pipes are the parent's, do not touch them."""
    global _pool
    _pool = Pool()


atexit.register(lambda: _pool.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# The child -------------------------------------------------------------------------------


def _serve() -> None:
    """Answer questions from standard input until it closes."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            questions.put(line)
        os._exit(0)  # the parent is gone, whatever the main thread is doing

    def reply(**message: object) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    logging.disable()  # math-verify warns that its own limit is off
    _limit("RLIMIT_AS", MAX_MEMORY)
    from modicum.grading import equivalence

    threading.Thread(target=read, daemon=True).start()
    reply(ready=True)
    while True:
        question = json.loads(questions.get())
        # One long multiplication keeps even the thread above waiting; the system then ends us.
        _limit("RLIMIT_CPU", int(time.process_time() + question["seconds"]) + SPARE_SECONDS)
        reply(same=equivalence.same(question["gold"], question["answer"], reply))


def _limit(name: str, value: int) -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        kind = getattr(resource, name)
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    _serve()
