r"""Compare formulas in a child process with a time limit.

    parent   equal(gold, answer, seconds) ──▶ {"gold": ..., "answer": ..., "seconds": ...}
    child    modicum.grading.algebra, then math-verify  ◀── {"same": true}

The text of a model can make an algebra system hang or fill the memory. So the work is done
in a process that is killed at the limit and started again when it is next needed
(`modicum.child`); neither torch nor sympy is imported here. It ends when its pipe closes,
however the parent ended.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any

from modicum.child import START_SECONDS, Child, ChildFailed, outlast_signals
from modicum.types import UserError

NUM_CHILDREN = 2  # that may work at a time
MAX_ANSWERS = 5000  # of one child, before a new one takes its place
SPARE_SECONDS = 15  # of the child's processor time above the limit, for importing sympy
MAX_MEMORY = 2 << 30  # bytes of address space of the child, where limits exist


@lru_cache(maxsize=4096)
def equal(gold: str, answer: str, seconds: float) -> bool:
    """Whether algebra finds `gold` and `answer` equal within `seconds`; False if it ends badly.

    Raises UserError if no child can be started.
    """
    return _pool.ask({"gold": gold, "answer": answer, "seconds": seconds}, seconds)


class Comparer(Child):
    """A process that compares formulas."""

    num_asked = 0

    def compare(self, question: dict[str, Any], seconds: float) -> bool:
        """The verdict; False if the process had to be killed or has died."""
        if self.process is not None and self.process.poll() is not None:
            self.close()  # it died unasked: no fault of this answer
        if self.process is None:
            self.num_asked = 0
            try:
                self.start()
            except ChildFailed:
                raise UserError("the process that compares formulas did not start") from None
        reply = None
        try:
            reply = self.ask(question, seconds)
            if reply == {"importing": "sympy"}:
                start, reply = time.monotonic(), None
                self.receive(START_SECONDS)
                # The import takes more than a second. It counts, but not so much that a slow
                # machine changes the verdict.
                left = seconds - (time.monotonic() - start)
                reply = self.receive(max(left, seconds / 4))
        except ChildFailed:
            return False
        finally:
            self.num_asked += 1
            # After an interrupt, too: the next reply would be that to another question.
            if reply is None or self.num_asked >= MAX_ANSWERS:
                self.close()
        return reply["same"]


class Pool:
    """A few children, lent to the threads that ask; each is started when it is first needed."""

    def __init__(self) -> None:
        self.all = [Comparer("-m", "modicum.grading.symbolic") for _ in range(NUM_CHILDREN)]
        self.free: queue.LifoQueue[Comparer] = queue.LifoQueue()
        for child in self.all:
            self.free.put(child)

    @property
    def children(self) -> set[Comparer]:
        """Those that run."""
        return {child for child in self.all if child.process is not None}

    def ask(self, question: dict[str, Any], seconds: float) -> bool:
        """The verdict of some child; waits until one is free."""
        child = self.free.get()
        try:
            return child.compare(question, seconds)
        finally:
            self.free.put(child)


_pool = Pool()


def close() -> None:
    """End the child processes; a later question starts new ones."""
    for child in _pool.all:
        child.close()


def _forget() -> None:
    """In a forked process: the pipes are the parent's, do not touch them."""
    global _pool
    _pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# The child -------------------------------------------------------------------------------


def _serve() -> None:
    """Answer questions from standard input until it closes."""
    outlast_signals()
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
